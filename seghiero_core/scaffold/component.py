"""Writing a new backbone or head: the component, its registration, a test, and a config that trains it at once."""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from seghiero_core.atomic import write_new_files
from seghiero_core.errors import UsageError
from seghiero_core.plugins.loading import FOLDER
from seghiero_core.registry import BACKBONES, HEADS
from seghiero_core.scaffold.rendering import (
    builtin_texts,
    class_name,
    component_text,
    plain_values,
    published_values,
    test_text,
)
from seghiero_core.scaffold.source_model import read_published
from seghiero_core.scaffold.starter import DATA_NAME, QUICK
from seghiero_core.scaffold.templates import read_template
from seghiero_core.version import __version__

LONGEST_NAME = 32  # letters; every generated line stays below 120
STARTER = "starter"
"""The folder beside the config whose data it trains on; `seghiero init starter` writes it."""


@dataclass(frozen=True)
class Scaffold:
    """What was written: `files` in all, of which `test` is the test and `config` trains it (none for a built-in)."""

    files: tuple[Path, ...]
    component: Path
    test: Path
    config: Path | None


def scaffold_backbone(
    name: str,
    folder: Path | str = ".",
    *,
    source: str | None = None,
    variants: Sequence[str] = (),
    place: str = "plugin",
    force: bool = False,
) -> Scaffold:
    """Write a backbone `name` into `folder`: a small network, or the published model that `source` names.

    `source` is `timm:MODEL` or `hf:CONFIG`; with `variants`, a `{}` in it stands for each of them. `place` is "plugin"
    (`seghiero_plugins`), "package" (one for pip), or "builtin" (`folder` is a source checkout). All files are written
    or none. Raises UsageError for a bad name, an unsuitable model, or a file that exists (without `force`).
    """
    target = _target("backbone", name, Path(folder), place, force)
    if bad := [variant for variant in variants if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", variant, re.ASCII)]:
        raise UsageError(f"--variants: '{bad[0]}' is no name; use letters, digits, '-', '_' and '.'.")
    if len(set(variants)) < len(variants):
        raise UsageError(f"--variants {','.join(variants)}: a name stands there twice.")
    if source is None:
        return _write("backbone", "plain", name, target, plain_values(variants), variants, force)
    if bool(variants) != ("{}" in source):
        raise UsageError(
            f"--from {source}: with --variants, put {{}} where the model's name has the variant's, and only then, "
            "for example --from 'timm:efficientnet_{}' --variants b0,b1."
        )
    models = [read_published(source.replace("{}", variant)) for variant in variants or [""]]
    return _write(
        "backbone", models[0].library, name, target, published_values(source, models, variants), variants, force
    )


def scaffold_head(name: str, folder: Path | str = ".", *, place: str = "plugin", force: bool = False) -> Scaffold:
    """Write a head `name` into `folder`; `place`, `force` and errors are those of `scaffold_backbone`."""
    target = _target("head", name, Path(folder), place, force)
    return _write("head", "plain", name, target, {}, (), force)


def check_name(kind: str, name: str) -> None:
    """Raise UsageError unless `name` can be that of a new module, class and YAML value."""
    if len(name) > LONGEST_NAME:
        raise UsageError(f"a {kind}'s name has at most {LONGEST_NAME} characters, '{name[:20]}...' has {len(name)}.")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
        raise UsageError(f"'{name}' is no name for a {kind}: use letters, digits and _, a letter first, like 'mynet'.")
    if keyword.iskeyword(name) or yaml.safe_load(name) != name or keyword.iskeyword(name.capitalize()):
        raise UsageError(f"'{name}' is no name for a {kind}: it means something else in Python or YAML.")
    if name.startswith("test_") or name.endswith("_test") or name in ("conftest", "test", "tests"):
        raise UsageError(f"'{name}' is no name for a {kind}: a module of that name counts as a test.")


@dataclass(frozen=True)
class _Target:
    place: str
    component: Path
    network: Path | None  # a second file, where the registration must not import torch
    test: Path
    config: Path | None
    root: Path


def _target(kind: str, name: str, folder: Path, place: str, force: bool) -> _Target:
    """Where the files of `name` go. Raises UsageError for a bad name, or one that is taken."""
    check_name(kind, name)
    if place == "builtin":
        if not (folder / "pyproject.toml").is_file() or not (folder / "seghiero_core" / f"{kind}s").is_dir():
            raise UsageError(f"--builtin: {folder.resolve()} is no source checkout of seghiero; change into one.")
        core = folder / "seghiero_core" / f"{kind}s"
        test = folder / "tests" / f"{kind}s" / f"test_{name}.py"
        target = _Target(place, core / f"{name}.py", core / "networks" / f"{name}.py", test, None, folder)
        if (core / name).exists() or target.network and target.network.exists() and not target.component.exists():
            raise UsageError(f"'{name}' is no name for a {kind}: {core} has a part of that name.")
    elif place == "package":
        root, package = folder / f"seghiero-{name.replace('_', '-').lower()}", f"seghiero_{name}"
        test = root / "tests" / f"test_{name}.py"
        target = _Target(place, root / package / f"{name}.py", None, test, root / f"{name}.yaml", root)
    else:
        own = folder / FOLDER / f"{kind}s"
        target = _Target(place, own / f"{name}.py", None, own / f"test_{name}.py", folder / f"{name}.yaml", folder)
    siblings = [file.stem for file in target.component.parent.glob("*.py")]
    taken = [*BACKBONES.names(), *HEADS.names(), *siblings]
    for other in taken:
        if other.lower() == name.lower() and (other != name or not _is_replaceable(name, target, force)):
            what = "is taken" if other == name else f"differs from the existing '{other}' by case only"
            hint = " (--force replaces it)" if other == name and _is_replaceable(name, target, True) else ""
            raise UsageError(f"the name '{name}' {what}{hint}; choose another one.")
    return target


def _is_replaceable(name: str, target: _Target, force: bool) -> bool:
    """Whether what has the name is the very file that --force would replace, and no built-in."""
    entries = [registry.entries[name] for registry in (BACKBONES, HEADS) if name in registry.entries]
    own = [Path(entry.build.__code__.co_filename).resolve() == target.component.resolve() for entry in entries]
    built_in = any(entry.build.__module__.startswith("seghiero_core.") for entry in entries)
    return force and all(own) and not built_in


def _write(
    kind: str,
    template: str,
    name: str,
    target: _Target,
    values: dict[str, str],
    variants: Sequence[str],
    force: bool,
) -> Scaffold:
    values = values | {
        "name": name,
        "kind": kind,
        "class_name": class_name(kind, name),
        "package": target.component.parent.name,
        "distribution": target.root.name,
        "version": __version__,
    }
    files = {}
    if target.network:
        files |= zip((target.component, target.network), builtin_texts(f"{kind}_{template}", values), strict=True)
    else:
        files[target.component] = component_text(f"{kind}_{template}", values)
    files[target.test] = test_text(target.place, values, variants)
    if target.place == "package":
        files[target.component.with_name("__init__.py")] = read_template("package_init").substitute(values)
        files[target.root / "pyproject.toml"] = read_template("package_pyproject").substitute(values)
    if target.config:
        files[target.config] = _config_text(kind, name, target)
    write_new_files(files, force=force)
    return Scaffold(tuple(files), target.component, target.test, target.config)


def _config_text(kind: str, name: str, target: _Target) -> str:
    """The starter's config with the new component in its place."""
    data = Path(STARTER) / DATA_NAME
    text = {
        "title": f"Trains the {kind} {name} on the pictures that `seghiero init {STARTER}` writes.",
        "root": str(data if target.place == "plugin" else ".." / data),
        "file": f"{name}.yaml",
        "name": name,
        kind: f"  type: {name}",
    }
    if target.place == "plugin":
        text[kind] += f"\n\nplugins: [{FOLDER}] # where {name} is"
    return read_template("cfg.yaml").substitute(QUICK | text)
