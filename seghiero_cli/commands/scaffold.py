"""`seghiero scaffold-backbone` and `seghiero scaffold-head`: generate a component that works before you edit it."""

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

Name = Annotated[str, typer.Argument(metavar="NAME", help="Its name in the YAML, and of its Python module.")]
Package = Annotated[bool, typer.Option("--package", help="Write an installable package instead of ./seghiero_plugins.")]
Builtin = Annotated[bool, typer.Option("--builtin", help="Write into a source checkout of seghiero.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite files of that name.")]


def scaffold_backbone(
    name: Name,
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="timm:MODEL|hf:CONFIG", help="Wrap a published model, given by name or folder."),
    ] = None,
    variants: Annotated[
        str | None,
        typer.Option(metavar="A,B,...", help="Names of its sizes; {} in --from stands for each."),
    ] = None,
    package: Package = False,
    builtin: Builtin = False,
    force: Force = False,
) -> None:
    """Generate a backbone, its test and a config that trains it. All of it works as generated."""
    from seghiero_core.scaffold import component as scaffold

    place = _place(package, builtin)
    names = [variant.strip() for variant in variants.split(",")] if variants is not None else []
    written = scaffold.scaffold_backbone(name, source=source, variants=names, place=place, force=force)
    _report(written, place, "backbone", name, f"seghiero channels {name} --verify")


def scaffold_head(name: Name, package: Package = False, builtin: Builtin = False, force: Force = False) -> None:
    """Generate a head, its test and a config that trains it. All of it works as generated."""
    from seghiero_core.scaffold import component as scaffold

    place = _place(package, builtin)
    written = scaffold.scaffold_head(name, place=place, force=force)
    _report(written, place, "head", name, "seghiero list-heads")


def _place(package: bool, builtin: bool) -> str:
    if package and builtin:
        raise UsageError("give either --package or --builtin, not both.")
    if package:
        return "package"
    return "builtin" if builtin else "plugin"


def _report(written, place: str, kind: str, name: str, look_up: str) -> None:
    from seghiero_core.scaffold.component import STARTER

    for file in written.files:
        console.result(f"wrote {file}")
    steps = [f"pip install -e {written.config.parent}"] if place == "package" else []
    if find_spec("pytest") is None:
        steps.append("pip install pytest")
    steps += [look_up, f"python -m pytest {os.path.relpath(written.test)}"]
    if not Path(STARTER).exists():
        steps.append(f"seghiero init {STARTER}")
    config = f"{STARTER}/cfg.yaml --set '{kind}={{type: {name}}}'" if written.config is None else str(written.config)
    steps.append(f"seghiero train {config}")
    console.note("\n  ".join(["Next:", *steps]))
