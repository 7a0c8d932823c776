"""`seghiero scaffold-backbone` and `seghiero scaffold-head`: a new component that works before it is edited."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from seghiero_cli import console
from seghiero_core.errors import UsageError

BACKBONE_EXAMPLE = "Example: seghiero scaffold-backbone mynet --from timm:mobilenetv3_large_100"
HEAD_EXAMPLE = "Example: seghiero scaffold-head myhead"

Name = Annotated[str, typer.Argument(metavar="NAME", help="Its name in the YAML, and of the Python module.")]
Package = Annotated[bool, typer.Option("--package", help="Write a package for pip instead of ./seghiero_plugins.")]
Builtin = Annotated[bool, typer.Option("--builtin", help="Write into seghiero itself; only in a source checkout.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the files of an earlier scaffold of this name.")]


def scaffold_backbone(
    name: Name,
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="timm:MODEL|hf:CONFIG", help="Wrap a published model (a name or a folder)."),
    ] = None,
    variants: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="Write a table of these sizes; {} in --from stands for each.")
    ] = None,
    package: Package = False,
    builtin: Builtin = False,
    force: Force = False,
) -> None:
    """Write a new backbone, its test and a config that trains it; nothing is left to edit."""
    from seghiero_core.scaffold import component as scaffold

    place = _place(package, builtin)
    names = [variant.strip() for variant in variants.split(",")] if variants is not None else []
    written = scaffold.scaffold_backbone(name, source=source, variants=names, place=place, force=force)
    _report(written, place, "backbone", name, f"seghiero channels {name} --verify")


def scaffold_head(name: Name, package: Package = False, builtin: Builtin = False, force: Force = False) -> None:
    """Write a new head, its test and a config that trains it; nothing is left to edit."""
    from seghiero_core.scaffold import component as scaffold

    place = _place(package, builtin)
    written = scaffold.scaffold_head(name, place=place, force=force)
    _report(written, place, "head", name, "seghiero list-heads")


def _place(package: bool, builtin: bool) -> str:
    if package and builtin:
        raise UsageError("give either --package or --builtin, not both.")
    return "package" if package else "builtin" if builtin else "plugin"


def _report(written, place: str, kind: str, name: str, look: str) -> None:
    from seghiero_core.scaffold.component import STARTER

    for file in written.files:
        console.result(f"wrote {file}")
    steps = [f"pip install -e {written.config.parent}"] if place == "package" else []
    if find_spec("pytest") is None:
        steps.append("pip install pytest")
    steps += [look, f"python -m pytest {os.path.relpath(written.test)}"]
    if not Path(STARTER).exists():
        steps.append(f"seghiero init {STARTER}")
    config = f"{STARTER}/cfg.yaml --set '{kind}={{type: {name}}}'" if written.config is None else str(written.config)
    steps.append(f"seghiero train {config}")
    console.note("\n  ".join(["Next, with nothing left to edit:", *steps]))
