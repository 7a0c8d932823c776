"""Write a new backbone or head: its network, its registration, a test, and a config that trains it."""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from seghiero_core.atomic import write_new_files
from seghiero_core.errors import UsageError
from seghiero_core.plugins.sources import FOLDER
from seghiero_core.registry import BACKBONES, HEADS
from seghiero_core.scaffold.rendering import (
    builtin_texts,
    class_name,
    component_text,
    plain_values,
    source_model_values,
    test_text,
)
from seghiero_core.scaffold.source_model import read_source_model
from seghiero_core.scaffold.starter import DATA_NAME, STARTER_VALUES
from seghiero_core.scaffold.templates import read_template
from seghiero_core.version import __version__

MAX_NAME_LENGTH = 32
"""Longest name of a component, in characters. With longer ones, generated lines could exceed 120 characters."""

STARTER = "starter"
"""Folder with the data that a generated config trains on. `seghiero init starter` writes it."""


@dataclass(frozen=True)
class Scaffold:
    """The files that were written.

    Attributes:
        files: All of them.
        component: The module with the registration.
        test: The test.
        config: The config that trains the component; None for a built-in.
    """

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
    """Write a new backbone: a small network to edit, or a wrapper of a published model.

    Either all files are written or none.

    Args:
        name: Its name in the YAML and of its module.
        folder: Where to write; for `place="builtin"`, a source checkout of seghiero.
        source: The model to wrap, `timm:MODEL` or `hf:CONFIG`; None for the small network.
        variants: Names of the variants. In `source`, `{}` is replaced by each of them.
        place: "plugin" (into `seghiero_plugins`), "package" (a package for pip) or "builtin".
        force: Whether to replace the files of an earlier scaffold.

    Returns:
        The files that were written.

    Raises:
        UsageError: If a name is invalid or taken, the model can't be a backbone, or a file exists (without `force`).
        WeightsError: If the config of a hub model can't be downloaded.
    """
    target = _target("backbone", name, Path(folder), place, force)
    if invalid := [variant for variant in variants if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", variant, re.ASCII)]:
        raise UsageError(
            f"--variants: '{invalid[0]}' is not a valid variant name; use letters, digits, '-', '_' and '.'."
        )
    if len(set(variants)) < len(variants):
        raise UsageError(f"--variants {','.join(variants)}: a variant is listed twice.")
    if source is None:
        return _write("backbone", "plain", name, target, plain_values(variants), variants, force)
    if bool(variants) != ("{}" in source):
        raise UsageError(
            f"--from {source}: use --variants and {{}} together; each variant replaces the {{}} in --from, "
            "for example --from 'timm:efficientnet_{}' --variants b0,b1."
        )
    models = [read_source_model(source.replace("{}", variant)) for variant in variants or [""]]
    values = source_model_values(source, models, variants)
    return _write("backbone", models[0].library, name, target, values, variants, force)


def scaffold_head(name: str, folder: Path | str = ".", *, place: str = "plugin", force: bool = False) -> Scaffold:
    """Write a new head: a small network to edit.

    Args:
        name: Its name in the YAML and of its module.
        folder: Where to write; for `place="builtin"`, a source checkout of seghiero.
        place: "plugin" (into `seghiero_plugins`), "package" (a package for pip) or "builtin".
        force: Whether to replace the files of an earlier scaffold.

    Returns:
        The files that were written.

    Raises:
        UsageError: If the name is invalid or taken, or a file exists (without `force`).
    """
    target = _target("head", name, Path(folder), place, force)
    return _write("head", "plain", name, target, {}, (), force)


def validate_name(kind: str, name: str) -> None:
    """Check that a component's name can be used as a module name, a class name and a YAML value.

    Args:
        kind: "backbone" or "head", for messages.
        name: The name.

    Raises:
        UsageError: If it can't.
    """
    if len(name) > MAX_NAME_LENGTH:
        raise UsageError(
            f"the name of a {kind} can have at most {MAX_NAME_LENGTH} characters, '{name[:20]}...' has {len(name)}."
        )
    invalid = f"'{name}' is not a valid name for a {kind}"
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
        raise UsageError(f"{invalid}: use letters, digits and _, and start with a letter, like 'mynet'.")
    if keyword.iskeyword(name) or yaml.safe_load(name) != name or keyword.iskeyword(name.capitalize()):
        raise UsageError(f"{invalid}: it has another meaning in Python or YAML.")
    if name.startswith("test_") or name.endswith("_test") or name in ("conftest", "test", "tests"):
        raise UsageError(f"{invalid}: pytest would treat its module as a test.")


@dataclass(frozen=True)
class _Target:
    """Where the files of a component go.

    Attributes:
        place: "plugin", "package" or "builtin".
        component: The module with the registration.
        network: A second module, for a built-in, whose registration must not import torch.
        test: The test.
        config: The config that trains the component; None for a built-in.
        root: The folder that holds everything.
    """

    place: str
    component: Path
    network: Path | None
    test: Path
    config: Path | None
    root: Path


def _target(kind: str, name: str, folder: Path, place: str, force: bool) -> _Target:
    """Return where the files of a component go. Raises UsageError if its name is invalid or taken."""
    validate_name(kind, name)
    if place == "builtin":
        target = _builtin_target(kind, name, folder)
    elif place == "package":
        root, package = folder / f"seghiero-{name.replace('_', '-').lower()}", f"seghiero_{name}"
        test = root / "tests" / f"test_{name}.py"
        target = _Target(place, root / package / f"{name}.py", None, test, root / f"{name}.yaml", root)
    else:
        plugins = folder / FOLDER / f"{kind}s"
        test = plugins / f"test_{name}.py"
        target = _Target(place, plugins / f"{name}.py", None, test, folder / f"{name}.yaml", folder)
    _check_name_is_free(name, target, force)
    return target


def _builtin_target(kind: str, name: str, folder: Path) -> _Target:
    core = folder / "seghiero_core" / f"{kind}s"
    if not (folder / "pyproject.toml").is_file() or not core.is_dir():
        raise UsageError(f"--builtin: {folder.resolve()} is not a source checkout of seghiero; run this inside one.")
    component, network = core / f"{name}.py", core / "networks" / f"{name}.py"
    if (core / name).exists() or (network.exists() and not component.exists()):
        raise UsageError(f"'{name}' is not a valid name for a {kind}: {core} already has a part with this name.")
    test = folder / "tests" / f"{kind}s" / f"test_{name}.py"
    return _Target("builtin", component, network, test, None, folder)


def _check_name_is_free(name: str, target: _Target, force: bool) -> None:
    """Raise UsageError if another component has the name or, on some file systems, the same file name."""
    neighbors = [file.stem for file in target.component.parent.glob("*.py")]
    for other in [*BACKBONES.names(), *HEADS.names(), *neighbors]:
        if other.lower() != name.lower():
            continue
        if other != name:
            raise UsageError(f"the name '{name}' differs from the existing '{other}' only by case; choose another one.")
        replaceable = _is_replaceable(name, target)
        if not (force and replaceable):
            hint = " (--force replaces it)" if replaceable else ""
            raise UsageError(f"the name '{name}' is already taken{hint}; choose another one.")


def _is_replaceable(name: str, target: _Target) -> bool:
    """Return whether the name belongs to the very file that --force would replace, and to no built-in."""
    for registry in (BACKBONES, HEADS):
        if name in registry.entries:
            build = registry.entries[name].build
            is_builtin = build.__module__.startswith("seghiero_core.")
            if is_builtin or Path(build.__code__.co_filename).resolve() != target.component.resolve():
                return False
    return True


def _write(
    kind: str,
    template: str,
    name: str,
    target: _Target,
    values: dict[str, str],
    variants: Sequence[str],
    force: bool,
) -> Scaffold:
    """Fill in the templates and write all files."""
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
    """Return the starter's config with the new component in it."""
    data = Path(STARTER) / DATA_NAME
    text = {
        "title": f"Trains the {kind} {name} on the images that `seghiero init {STARTER}` writes.",
        "root": str(data if target.place == "plugin" else ".." / data),
        "file": f"{name}.yaml",
        "name": name,
        kind: f"  type: {name}",
    }
    if target.place == "plugin":
        text[kind] += f"\n\nplugins: [{FOLDER}] # the folder with {name}"
    return read_template("cfg.yaml").substitute(STARTER_VALUES | text)
