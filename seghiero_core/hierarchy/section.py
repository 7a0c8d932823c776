"""The `classes` section: where it comes from, and every fault in it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from seghiero_core.errors import ConfigError, UsageError, nearest
from seghiero_core.hierarchy.presets import expand_preset, preset_names

KEYS = ("preset", "labels", "tree", "ignore", "colors")
LARGEST_VALUE = 65535  # masks have up to 16 bits


@dataclass(frozen=True)
class ClassSection:
    """A checked `classes` section in its plainest form.

    Attributes:
        labels: Name of each mask value, sorted by mask value.
        tree: Nested mappings from name to children; a leaf has none.
        ignore: The mask value of ignored pixels.
        colors: R, G, B in 0..255 of the names that were given a color.
    """

    labels: dict[int, str]
    tree: dict[str, Any]
    ignore: int
    colors: dict[str, Sequence[int]]


def read_classes(config: Any) -> ClassSection:
    """Find the `classes` section in a config and check it.

    Args:
        config: A path to a YAML file, a whole config, or a `classes` section; see `Hierarchy.from_config`.

    Returns:
        The checked section.

    Raises:
        UsageError: When the section names an unknown preset.
        ConfigError: When the file can't be read or the section is wrong; lists every fault.
    """
    if not isinstance(config, str | os.PathLike):
        return _checked(_classes_of(config))
    path = Path(config)
    document = _read_yaml(path)
    try:
        return _checked(_classes_of(document))
    except UsageError as error:
        raise ConfigError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from None


def check_labels(labels: Any) -> dict[int, str]:
    """Check the form of `classes.labels`.

    Args:
        labels: A list of names, or a mapping from mask value to name.

    Returns:
        The name of each mask value.

    Raises:
        ValueError: When it is something else; the message says what was expected.
    """
    if not isinstance(labels, Mapping | Sequence) or isinstance(labels, str) or not labels:
        raise ValueError(f"expected a list of names, or a mapping from mask value to name, found {short_repr(labels)}")
    pairs = dict(labels) if isinstance(labels, Mapping) else dict(enumerate(labels))
    for value, name in pairs.items():
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST_VALUE:
            raise ValueError(f"expected mask values from 0 to {LARGEST_VALUE}, found {short_repr(value)}")
        _check_name(name)
    return pairs


def check_tree(tree: Any) -> Any:
    """Check the form of `classes.tree`.

    Args:
        tree: Nested mappings and lists of names.

    Returns:
        The same as plain dicts and lists.

    Raises:
        ValueError: When it holds something else; the message says what was expected.
    """
    if tree is None:
        return None
    if isinstance(tree, Mapping):
        return {_check_name(name): check_tree(children) for name, children in tree.items()}
    if isinstance(tree, Sequence) and not isinstance(tree, str):
        return [check_tree(item) for item in tree]
    return _check_name(tree)


def short_repr(value: Any) -> str:
    """Show a value of a config in a message.

    Args:
        value: A plain value.

    Returns:
        Its `repr`, cut off after 60 characters.
    """
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def walk(
    tree: Mapping[str, Any], parent: str | None = None, depth: int = 1
) -> Iterator[tuple[str, str | None, int, Mapping[str, Any]]]:
    """Yield the nodes of a nested tree, parents first, in the order in which they are written.

    Args:
        tree: Nested mappings from name to children.
        parent: The name of the node above `tree`. None stands for the root.
        depth: The depth of the first nodes.

    Yields:
        The name, the parent's name, the depth and the children of each node.
    """
    for name, children in tree.items():
        yield name, parent, depth, children
        yield from walk(children, name, depth + 1)


def _check_name(name: Any) -> str:
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"expected names, found {short_repr(name)}; if it is meant as a name, put it in quotes")
    return name


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = f" For the preset of that name, pass {{'preset': '{path}'}}." if str(path) in preset_names() else ""
        raise ConfigError(f"{path}: no such file. Expected a YAML file with classes.{hint}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}). Expected a YAML file with classes.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file. Expected a YAML file with classes.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{path}{line}: not valid YAML: {problem}. Fix the syntax.") from None


def _classes_of(config: Any) -> Mapping[str, Any]:
    """The `classes` section of a whole config, or `config` itself where it is one, as a mapping."""
    section = config.get("classes", config) if isinstance(config, Mapping) else getattr(config, "classes", config)
    if not isinstance(section, Mapping):
        section = {key: getattr(section, key) for key in KEYS if hasattr(section, key)}
    if section.get("labels") is None and section.get("preset") is None:
        raise ConfigError("no classes found. Add `classes.labels` (a list of names) or `classes.preset`.")
    return section


def _checked(section: Mapping[str, Any]) -> ClassSection:
    section = expand_preset(section)
    faults = [
        f"classes.{key}: unknown key.{nearest(key, KEYS)} Known: {', '.join(KEYS)}."
        for key in section
        if key not in KEYS
    ]
    try:
        labels = dict(sorted(check_labels(section["labels"]).items()))
    except ValueError as error:
        raise ConfigError(f"classes.labels: {error}.") from None
    try:
        tree = _nested(check_tree(section.get("tree"))) or {name: {} for name in labels.values()}
    except ValueError as error:
        raise ConfigError(f"classes.tree: {error}.") from None
    faults += _tree_faults(list(labels.values()), tree)
    ignore = section.get("ignore", 255)
    if isinstance(ignore, bool) or not isinstance(ignore, int) or not 0 <= ignore <= LARGEST_VALUE:
        faults.append(f"classes.ignore: expected a mask value from 0 to {LARGEST_VALUE}, found {ignore!r}.")
    elif ignore in labels:
        faults.append(f"classes.ignore: {ignore} is also the mask value of '{labels[ignore]}'; choose another.")
    colors = dict(section.get("colors") or {})
    faults += _color_faults(colors, [*labels.values(), *(name for name, *_ in walk(tree))])
    if faults:
        raise ConfigError("\n".join(faults))
    return ClassSection(labels, tree, ignore, colors)


def _nested(tree: Any) -> dict[str, Any]:
    """The tree as nested dicts with {} at leaves. Lists may hold names and one-key mappings."""
    if tree is None:
        return {}
    if isinstance(tree, str):
        return {tree: {}}
    if isinstance(tree, Mapping):
        return {name: _nested(children) for name, children in tree.items()}
    nested: dict[str, Any] = {}
    for item in tree:
        for name, children in _nested(item).items():
            if name in nested:
                raise ConfigError(f"classes.tree: '{name}' is listed twice in one list. Remove one.")
            nested[name] = children
    return nested


def _tree_faults(labels: Sequence[str], tree: Mapping[str, Any]) -> list[str]:
    walked = [(name, children) for name, _, _, children in walk(tree)]
    in_tree = [name for name, _ in walked]
    known_labels, known_nodes = set(labels), set(in_tree)
    faults = [f"classes.labels: '{name}' is listed twice." for name in _repeated(labels)]
    faults += [f"classes.tree: '{name}' is listed twice in the tree." for name in _repeated(in_tree)]
    faults += [
        f"classes.labels: '{name}' is missing from classes.tree.{nearest(name, in_tree)}"
        for name in labels
        if name not in known_nodes
    ]
    faults += [
        f"classes.tree: the leaf '{name}' is not a label.{nearest(name, labels)}"
        for name, children in walked
        if not children and name not in known_labels
    ]
    return faults


def _color_faults(colors: Mapping[str, Any], known: Sequence[str]) -> Iterator[str]:
    for name, color in colors.items():
        if name not in known:
            yield f"classes.colors: '{name}' is not a class.{nearest(name, known)}"
        elif not _is_rgb(color):
            yield f"classes.colors.{name}: expected three whole numbers from 0 to 255, found {color}."


def _is_rgb(color: Any) -> bool:
    is_triple = isinstance(color, Sequence) and len(color) == 3
    return is_triple and all(isinstance(channel, int) and 0 <= channel <= 255 for channel in color)


def _repeated(names: Sequence[str]) -> list[str]:
    return sorted(name for name, count in Counter(names).items() if count > 1)
