"""`seghiero list-heads`: what can stand under `head:`."""

from __future__ import annotations

from typing import Annotated

import typer

from seghiero_cli import console
from seghiero_core.registry import HEADS

EXAMPLE = "Example: seghiero list-heads --json"


def list_heads(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """List every segmentation head; any of them takes any backbone."""
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
    console.table("", ("type", "proj_dim", "what it is"), [(e.name, str(e.proj_dim), e.summary) for e in entries], (1,))
