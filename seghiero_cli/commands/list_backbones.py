"""`seghiero list-backbones`: the choices for `backbone:`."""

from __future__ import annotations

from typing import Annotated

import typer

from seghiero_cli import console

EXAMPLE = "Example: seghiero list-backbones --json"


def list_backbones(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """List every backbone with its variants and the published weights it can start from."""
    from seghiero_core.registry import BACKBONES

    entries = [BACKBONES.get(name) for name in BACKBONES.names()]
    if as_json:
        console.result_json(
            [
                {
                    "type": entry.name,
                    "variants": list(entry.variants),
                    "source": entry.source,
                    "weights": {variant: list(tags) for variant, tags in entry.weights.items()},
                }
                for entry in entries
            ]
        )
        return
    rows = [
        (entry.name if i == 0 else "", f"{entry.selector}: {variant}", next(iter(entry.weights.get(variant, ())), "-"))
        for entry in entries
        for i, variant in enumerate(entry.variants)
    ]
    console.table("", ("type", "variant", "weights with `pretrained: true`"), rows)
    console.note("Channels and strides: seghiero channels\nAll published weights: seghiero list-backbones --json")
