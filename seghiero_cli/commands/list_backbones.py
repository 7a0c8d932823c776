"""`seghiero list-backbones`: the choices for `backbone:`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from seghiero_cli import console

EXAMPLE = "Example: seghiero list-backbones --timm 'vit_small_*dinov3*'"


def list_backbones(
    timm: Annotated[
        str | None,
        typer.Option(metavar="PATTERN", help="List the models of timm that match, such as 'vit_*' or resnet50."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """List every backbone with its variants and the published weights it can start from."""
    if timm is not None:
        _list_timm(timm, as_json)
        return
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
    rows.append(("timm", "variant: any of timm", "see list-backbones --timm PATTERN"))
    console.table("", ("type", "variant", "weights with `pretrained: true`"), rows)
    console.note("Channels and strides: seghiero channels\nAll published weights: seghiero list-backbones --json")


def _list_timm(pattern: str, as_json: bool) -> None:
    from seghiero_core.backbones.networks.timm_listing import list_timm

    rows = list(list_timm(pattern, _print_probe))
    if as_json:
        console.result_json(rows)
        return
    if usable := [row for row in rows if not row["refused"]]:
        columns = ("variant", "channels", "strides of the network", "parameters", "weights by default", "license")
        console.table("", columns, [_cells(row) for row in usable], right=(3,))
    if refused := [(row["variant"], row["refused"]) for row in rows if row["refused"]]:
        console.table("These can't be a backbone:", ("variant", "reason"), refused)
    console.note("For all published weights of these, add --json")


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    tag, license_ = next(iter(row["weights"].items()), ("-", None))
    return (
        row["variant"],
        _numbers(row["channels"]),
        _numbers(row["network_strides"]),
        f"{row['parameters'] / 1e6:.1f} M",
        tag.partition(".")[2] or "-",
        license_ or "-",
    )


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _print_probe(event: dict[str, Any]) -> None:
    count = event["variants"]
    if count > 3:
        console.note(f"building {count} models without memory to look at them; this is kept in the cache")
