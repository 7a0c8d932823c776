"""`seghiero list-heads`: the choices for `head:`."""

from __future__ import annotations

from typing import Annotated

import typer

from seghiero_cli import console

EXAMPLE = "Example: seghiero list-heads --json"


def list_heads(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """List every segmentation head. Any head works with any backbone."""
    from seghiero_core.registry import HEADS

    entries = [HEADS.get(name) for name in HEADS.names()]
    if as_json:
        console.result_json(
            [
                {
                    "type": entry.name,
                    "proj_dim": entry.proj_dim,
                    "options": list(entry.options),
                    "summary": entry.summary,
                }
                for entry in entries
            ]
        )
        return
    rows = [(entry.name, str(entry.proj_dim), entry.summary) for entry in entries]
    console.table("", ("type", "proj_dim", "description"), rows, right=(1,))
