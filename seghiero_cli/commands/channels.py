"""`seghiero channels`: the channels and strides of a backbone's four feature maps."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seghiero_cli import console
from seghiero_core.errors import CheckFailed, UsageError, nearest

if TYPE_CHECKING:
    from seghiero_core.registry import BackboneEntry

EXAMPLE = "Example: seghiero channels convnext --variant tiny --verify"


def channels(
    type_: Annotated[str | None, typer.Argument(metavar="TYPE", help="A backbone. Default: all but timm's.")] = None,
    depth: Annotated[str | None, typer.Option(help="Only this depth.")] = None,
    variant: Annotated[str | None, typer.Option(help="Only this variant.")] = None,
    config: Annotated[Path | None, typer.Option(help="Use the backbone of this config.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Build the network, compare its output, and try every head.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Print the channels and strides of C1 to C4, without building the network."""
    from seghiero_core.registry import BACKBONES

    options: dict[str, Any] = {}
    if config is not None:
        if type_ or depth or variant:
            raise UsageError("channels: give either --config, or TYPE with --depth or --variant, not both.")
        from seghiero_core.config.loading import load_config

        options = load_config(config).backbone.model_dump()
        entry = BACKBONES.get(options.pop("type"))
        options.pop("pretrained")
        chosen = [(entry, str(options.pop(entry.selector, entry.default)))]
    else:
        entries = [BACKBONES.get(type_)] if type_ else _matching(depth, variant)
        chosen = [(entry, name) for entry in entries for name in _chosen(entry, depth, variant)]
    rows = [_row(entry, name, options) for entry, name in chosen]
    if verify:
        _verify(chosen, rows, options)
    if as_json:
        console.result_json(rows)
    else:
        console.table(
            "",
            ("type", "variant", "C1", "C2", "C3", "C4", "strides"),
            [
                (
                    row["type"],
                    str(row.get("depth", row.get("variant"))),
                    *map(str, row["channels"]),
                    ", ".join(map(str, row["strides"])),
                )
                for row in rows
            ],
            (2, 3, 4, 5),
        )
    if not verify:
        return
    faults = [fault for row in rows for fault in _fault_lines(row)]
    if faults:
        raise CheckFailed("\n".join(faults))
    console.note("Verified: all feature maps have these channels and strides, and every head accepts them.")


def _fault_lines(row: dict[str, Any]) -> list[str]:
    name = f"{row['type']} {row.get('depth', row.get('variant'))}"
    if not row["faults"]:
        return [f"{name}: head {head} fails: {reason}" for head, reason in row["heads"].items() if reason]
    lines = [f"{name}: {text}" for text in (*row["faults"], *row["shapes"])]
    accepting = ", ".join(head for head, reason in row["heads"].items() if not reason)
    return [*lines, f"{name}: heads that accept it as it is: {accepting or 'none'}"]


def _matching(depth: str | None, variant: str | None) -> list[BackboneEntry]:
    """Return the backbones with that depth or variant; all if neither is given. Raises UsageError if none match."""
    from seghiero_core.registry import BACKBONES

    entries = [entry for entry in map(BACKBONES.get, BACKBONES.names()) if entry.variants]
    given = {selector: name for selector, name in (("depth", depth), ("variant", variant)) if name is not None}
    if len(given) > 1:
        raise UsageError("channels: no backbone has both a depth and a variant; give either --depth or --variant.")
    for selector, name in given.items():
        entries = [entry for entry in entries if entry.selector == selector]
        known = [each for entry in entries for each in entry.variants]
        if name not in known:
            raise UsageError(
                f"channels: no backbone has {selector} '{name}'.{nearest(name, known)} Known: {', '.join(known)}. "
                "For models of timm: `seghiero channels timm --variant NAME`."
            )
        entries = [entry for entry in entries if name in entry.variants]
    return entries


def _chosen(entry: BackboneEntry, depth: str | None, variant: str | None) -> list[str]:
    given = {"depth": depth, "variant": variant}
    name = given.pop(entry.selector, None)
    for other, value in given.items():
        if value is not None:
            raise UsageError(f"channels: {entry.name} has no {other}; use --{entry.selector}.")
    if name is None and not entry.variants:
        raise UsageError(f"channels: {entry.name} has many {entry.selector}s; choose one with --{entry.selector}.")
    if name is None:
        return list(entry.variants)
    entry.check_variant(name)
    return [name]


def _row(entry: BackboneEntry, name: str, options: dict[str, Any]) -> dict[str, Any]:
    chosen = int(name) if entry.selector == "depth" and name.isdigit() else name
    return {
        "type": entry.name,
        entry.selector: chosen,
        "channels": list(entry.variants[name]),
        "strides": list(entry.strides(options.get("output_stride", 32))),
    }


def _verify(chosen: list[tuple[BackboneEntry, str]], rows: list[dict[str, Any]], options: dict[str, Any]) -> None:
    from seghiero_core.testing.conformance import verify_backbone

    for (entry, name), row in zip(chosen, rows, strict=True):
        report = verify_backbone(entry.name, name, **options)
        row["verified"] = report.ok
        row["faults"] = list(report.problems)
        row["heads"] = report.heads
        row["shapes"] = [
            f"C{i}: expected {'x'.join(map(str, expected))}, found {'x'.join(map(str, found)) or 'nothing'}"
            f"{', as it should' if expected == found else ''}"
            for i, (expected, found) in enumerate(zip_longest(report.expected, report.found, fillvalue=()), 1)
        ]
