"""`seghiero init`: create a project to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seghiero_cli import console

EXAMPLE = "Example: seghiero init starter --recipe balanced"


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to write to; created if it doesn't exist.")],
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What to start from. Backbone and head for real data: max-accuracy, balanced, max-speed or "
            "budget-gpu. Data of fine and of coarse labels: mixed-labels.",
        ),
    ] = None,
) -> None:
    """Write a config and a small synthetic data set with a three-level class tree."""
    from seghiero_core.scaffold.starter import write_starter

    config = write_starter(folder, recipe)
    console.result(f"Wrote {folder}. Next:\n  seghiero train {config}")
