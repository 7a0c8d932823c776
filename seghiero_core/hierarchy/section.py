"""The `classes` section: where it comes from, and every fault in it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seghiero_core.errors import ConfigError, UsageError, nearest
from seghiero_core.hierarchy.presets import expand_preset, preset_names
from seghiero_core.hierarchy.values import (
    LARGEST_VALUE,
    FaultAt,
    check_colors,
    check_labels,
    check_tree,
    nodes_of,
    short_repr,
    walk,
)
from seghiero_core.hierarchy.yaml_reader import Key, dotted, place, read_yaml_file

KEYS = ("preset", "labels", "tree", "ignore", "colors")
_SHOWN = 3  # faults of one kind


@dataclass(frozen=True)
class ClassSection:
    """A checked `classes` section in its plainest form.

    Attributes:
        labels: What each mask value stands for, sorted by mask value: the name of a node, or for "one of these" the
            names of leaves that aren't all leaves of one node.
        tree: Nested mappings from name to children; a leaf has none.
        ignore: The mask value of ignored pixels.
        colors: R, G, B in 0..255 of the names that were given a color.
    """

    labels: dict[int, str | tuple[str, ...]]
    tree: dict[str, Any]
    ignore: int
    colors: dict[str, list[int]]


class ClassesError(ConfigError):
    """The faults of a `classes` section.

    Attributes:
        faults: For each, its key, such as ("classes", "labels", 3), and what is wrong.
    """

    def __init__(self, faults: Sequence[tuple[Key, str]]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(f"{dotted(key)}: {text}" for key, text in faults))


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
    if str(path) in preset_names() and not path.exists():
        raise ConfigError(f"{path}: no such file. For the preset of that name, pass {{'preset': '{path}'}}.")
    document, lines = read_yaml_file(path)
    try:
        return _checked(_classes_of(document))
    except ClassesError as error:
        # In a file that is a `classes` section, keys begin below it.
        above = 0 if isinstance(document, Mapping) and "classes" in document else 1
        places = {key: f"{path}, line {line}" for key, line in lines.items()}
        found = zip(error.faults, str(error).splitlines(), strict=True)
        raise ConfigError(
            "\n".join(f"{place(key[above:], places, path)}: {line}" for (key, _), line in found)
        ) from None
    except UsageError as error:
        raise ConfigError(f"{path}: {error}") from None


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
        (("classes", key), f"unknown key.{nearest(key, KEYS)} Known: {', '.join(KEYS)}.")
        for key in section
        if key not in KEYS
    ]
    checked: dict[str, Any] = {}
    for key, check in (("labels", check_labels), ("tree", check_tree), ("colors", check_colors)):
        try:
            checked[key] = check(section.get(key))
        except FaultAt as fault:
            faults.append((("classes", key, *fault.key), f"{fault}."))
    if len(checked) < 3:  # the rest can't be compared with each other
        raise ClassesError(faults)
    labels, colors = dict(sorted(checked["labels"].items())), checked["colors"] or {}
    tree = checked["tree"] or list(dict.fromkeys(name for names in labels.values() for name in _names(names)))
    faults += [(("classes", *key), text) for key, text in _tree_faults(labels, tree)]
    ignore = section.get("ignore", 255)
    if isinstance(ignore, bool) or not isinstance(ignore, int) or not 0 <= ignore <= LARGEST_VALUE:
        expected = f"expected a mask value from 0 to {LARGEST_VALUE}, found {short_repr(ignore)}."
        faults.append((("classes", "ignore"), expected))
    elif ignore in labels:
        taken = (
            f"{ignore} is also the mask value of '{' or '.join(_names(labels[ignore]))}'; choose one that no mask uses."
        )
        faults.append((("classes", "ignore"), taken))
    faults += _color_faults(colors, [name for _, name, _ in nodes_of(tree)])
    if faults:
        raise ClassesError(faults)
    nested = _nested(tree)
    labels = _plainest_labels(labels, nested)
    if faults := list(_equal_labels(labels)):
        raise ClassesError(faults)
    return ClassSection(labels, nested, ignore, colors)


def _names(label: str | Sequence[str]) -> Sequence[str]:
    return [label] if isinstance(label, str) else label


def _plainest_labels(
    labels: Mapping[int, str | Sequence[str]], tree: Mapping[str, Any]
) -> dict[int, str | tuple[str, ...]]:
    """Replace each list of names by the node that has the same leaves, the deepest of several, or by its leaves."""
    nodes = list(walk(tree))
    leaves: dict[str, tuple[str, ...]] = {}
    for name, _, _, children in reversed(nodes):  # children first
        leaves[name] = tuple(leaf for child in children for leaf in leaves[child]) or (name,)
    deepest = {frozenset(leaves[name]): name for name, *_ in sorted(nodes, key=lambda node: node[2])}
    plain: dict[int, str | tuple[str, ...]] = {}
    for value, label in labels.items():
        if len(names := _names(label)) == 1:
            plain[value] = names[0]
        else:
            members = {leaf for name in names for leaf in leaves[name]}
            in_order = tuple(name for name, *_ in nodes if name in members)
            plain[value] = deepest.get(frozenset(members), in_order)
    return plain


def _equal_labels(labels: Mapping[int, str | tuple[str, ...]]) -> Iterator[tuple[Key, str]]:
    """Find the labels that mean the same as an earlier one."""
    value_of: dict[str | tuple[str, ...], int] = {}
    for value, label in labels.items():
        if label in value_of:
            text = f"means the same as mask value {value_of[label]}, '{' or '.join(_names(label))}'; "
            yield ("classes", "labels", value), text + "remove one of them and merge the values in the masks."
        value_of.setdefault(label, value)


def _nested(tree: Any) -> dict[str, Any]:
    """A checked tree as nested dicts with {} at leaves."""
    if tree is None:
        return {}
    if isinstance(tree, str):
        return {tree: {}}
    if isinstance(tree, Mapping):
        return {name: _nested(children) for name, children in tree.items()}
    return {name: children for item in tree for name, children in _nested(item).items()}


def _tree_faults(labels: Mapping[int, str | Sequence[str]], tree: Any) -> list[tuple[Key, str]]:
    nodes = list(nodes_of(tree))
    in_tree = {name for _, name, _ in nodes}
    names = {name for label in labels.values() for name in _names(label)}
    value_of: dict[str, int] = {}
    repeated, missing = [], []
    for value, label in labels.items():
        if isinstance(label, str):
            if label in value_of:
                text = f"'{label}' is also the name of mask value {value_of[label]}; give each label its own name."
                repeated.append((("labels", value), text))
                continue
            value_of[label] = value
        for position, name in enumerate(_names(label)):
            if name not in in_tree:
                key = ("labels", value) if isinstance(label, str) else ("labels", value, position)
                missing.append((key, f"'{name}' is missing from classes.tree.{nearest(name, in_tree)}"))
    in_sets = {name for label in labels.values() if not isinstance(label, str) for name in label}
    first: dict[str, Key] = {}
    twice, strange = [], []
    for key, name, children in nodes:
        if name in first:
            where = dotted(("classes", "tree", *first[name]))
            twice.append((("tree", *key), f"'{name}' is already at {where}; a name may occur only once in the tree."))
        elif not children and name not in names and not in_sets.intersection(key):
            strange.append((("tree", *key), _not_a_label(name, children, sorted(names))))
        first.setdefault(name, key)
    return [
        *_first_few(repeated, "repeated labels"),
        *_first_few(missing, "labels that are missing from classes.tree"),
        *_first_few(twice, "names that occur twice in the tree"),
        *_first_few(strange, "names in the tree that are not labels"),
    ]


def _not_a_label(name: str, children: Any, labels: Sequence[str]) -> str:
    if children is not None:  # [] or {}
        return f"the group '{name}' is empty; list its labels, or remove it."
    if "," in name and set(map(str.strip, name.split(","))) <= set(labels):
        return f"'{name}' is one name; write a list: [{name}]."
    return f"'{name}' is neither a label nor a group with children.{nearest(name, labels)}"


def _first_few(faults: list[tuple[Key, str]], what: str) -> list[tuple[Key, str]]:
    """The first faults of a kind, and the number of the others."""
    rest = faults[_SHOWN:]
    return faults[:_SHOWN] + ([(rest[0][0], f"and {len(rest)} more {what}.")] if rest else [])


def _color_faults(colors: Mapping[str, Any], known: Sequence[str]) -> Iterator[tuple[Key, str]]:
    for name in colors:
        if name not in known:
            yield ("classes", "colors", name), f"'{name}' is not a class.{nearest(name, known)}"
