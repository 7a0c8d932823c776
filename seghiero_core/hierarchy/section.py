"""The `classes` section: where it comes from, and every fault in it."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
class MaskValues:
    """What the values of masks stand for.

    Attributes:
        labels: What each mask value stands for, sorted by mask value: the name of a node, or for "one of these" the
            names of leaves that aren't all leaves of one node.
        ignore: The mask value of ignored pixels.
        section: Where they are written: "classes", or a source such as "dataset.sources.1".
    """

    labels: dict[int, str | tuple[str, ...]]
    ignore: int
    section: str


@dataclass(frozen=True)
class ClassSection(MaskValues):
    """A checked `classes` section in its plainest form.

    Attributes:
        tree: Nested mappings from name to children; a leaf has none.
        colors: R, G, B in 0..255 of the names that were given a color.
        sources: The mask values of each of `dataset.sources`.
    """

    tree: dict[str, Any]
    colors: dict[str, list[int]]
    sources: tuple[MaskValues, ...] = ()


class ClassesError(ConfigError):
    """The faults of a `classes` section.

    Attributes:
        faults: For each, its key, such as ("classes", "labels", 3), and what is wrong.
    """

    def __init__(self, faults: Sequence[tuple[Key, str]]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(f"{dotted(key)}: {text}" for key, text in faults))


def read_classes(config: Any) -> ClassSection:
    """Find the `classes` section in a config and check it, with the labels of `dataset.sources`.

    Args:
        config: A path to a YAML file, a whole config, or a `classes` section; see `Hierarchy.from_config`.

    Returns:
        The checked section.

    Raises:
        UsageError: When the section names an unknown preset.
        ConfigError: When the file can't be read or the section is wrong; lists every fault.
    """
    if not isinstance(config, str | os.PathLike):
        return _checked(_classes_of(config), _sources_of(config))
    path = Path(config)
    if str(path) in preset_names() and not path.exists():
        raise ConfigError(f"{path}: no such file. For the preset of that name, pass {{'preset': '{path}'}}.")
    document, lines = read_yaml_file(path)
    try:
        return _checked(_classes_of(document), _sources_of(document))
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


def _sources_of(config: Any) -> list[Mapping[str, Any]]:
    """The entries of `dataset.sources` of a whole config, as mappings."""
    for key in ("dataset", "sources"):
        config = config.get(key) if isinstance(config, Mapping) else getattr(config, key, None)
    entries = config if isinstance(config, list | tuple) else []
    return [
        each if isinstance(each, Mapping) else {k: getattr(each, k) for k in ("labels", "ignore")} for each in entries
    ]


def _checked(section: Mapping[str, Any], sources: Sequence[Mapping[str, Any]]) -> ClassSection:
    section = expand_preset(section)
    faults = [
        (("classes", key), f"unknown key.{nearest(key, KEYS)} Known: {', '.join(KEYS)}.")
        for key in section
        if key not in KEYS
    ]
    checked: dict[str, Any] = {}
    for key, check in (("tree", check_tree), ("colors", check_colors)):
        try:
            checked[key] = check(section.get(key))
        except FaultAt as fault:
            faults.append((("classes", key, *fault.key), f"{fault}."))
    # All mask values: those of the section, then those of each source, which may leave out what equals the section's.
    main: Key = ("classes",)
    own = {main: section} | {("dataset", "sources", i): source for i, source in enumerate(sources)}
    masks: dict[Key, MaskValues] = {}
    for where, keys in own.items():
        labels, ignore = ({**section, **_given(keys)}.get(key) for key in ("labels", "ignore"))
        try:
            checked_labels = dict(sorted(check_labels(labels).items()))
            masks[where] = MaskValues(checked_labels, 255 if ignore is None else ignore, dotted(where))
        except FaultAt as fault:
            if where == main or "labels" in _given(keys):
                faults.append(((*where, "labels", *fault.key), f"{fault}."))
    if len(checked) < 2 or len(masks) < len(own):  # the rest can't be compared with each other
        raise ClassesError(faults)
    colors = checked["colors"] or {}
    names = [name for label in masks[main].labels.values() for name in _names(label)]
    tree = checked["tree"] or list(dict.fromkeys(names))
    in_tree = {name for _, name, _ in nodes_of(tree)}
    for where, keys in own.items():
        if where == main or "labels" in _given(keys):
            known_from = "classes.tree" if checked["tree"] else "classes.labels"
            faults += _label_faults(where, masks[where].labels, in_tree, known_from)
        if where == main or _given(keys):
            faults += [((*where, "ignore"), text) for text in _ignore_faults(masks[where])]
    faults += [(("classes", *key), text) for key, text in _tree_faults([each.labels for each in masks.values()], tree)]
    faults += _color_faults(colors, in_tree)
    if faults:
        raise ClassesError(faults)
    nested = _nested(tree)
    found, *sources = (replace(each, labels=_plainest_labels(each.labels, nested)) for each in masks.values())
    if faults := list(_equal_labels(found.labels)):
        raise ClassesError(faults)
    return ClassSection(found.labels, found.ignore, found.section, nested, colors, tuple(sources))


def _given(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a source's mask values that it doesn't leave out."""
    return {key: keys[key] for key in ("labels", "ignore") if keys.get(key) is not None}


def _ignore_faults(masks: MaskValues) -> Iterator[str]:
    ignore = masks.ignore
    if isinstance(ignore, bool) or not isinstance(ignore, int) or not 0 <= ignore <= LARGEST_VALUE:
        yield f"expected a mask value from 0 to {LARGEST_VALUE}, found {short_repr(ignore)}."
    elif ignore in masks.labels:
        name = " or ".join(_names(masks.labels[ignore]))
        yield f"{ignore} is also the mask value of '{name}'; choose one that no mask uses."


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
    """Find the labels of `classes` that mean the same as an earlier one. Those of a source may."""
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


def _label_faults(
    where: Key, labels: Mapping[int, str | Sequence[str]], in_tree: Collection[str], known_from: str
) -> list[tuple[Key, str]]:
    value_of: dict[str, int] = {}
    repeated, missing = [], []
    for value, label in labels.items():
        if isinstance(label, str):
            if label in value_of and where == ("classes",):
                text = f"'{label}' is also the name of mask value {value_of[label]}; give each label its own name."
                repeated.append(((*where, "labels", value), text))
                continue
            value_of[label] = value
        for position, name in enumerate(_names(label)):
            if name not in in_tree:
                key = (*where, "labels", value) if isinstance(label, str) else (*where, "labels", value, position)
                missing.append((key, f"'{name}' is missing from {known_from}.{nearest(name, in_tree)}"))
    return [
        *_first_few(repeated, "repeated labels"),
        *_first_few(missing, f"labels that are missing from {known_from}"),
    ]


def _tree_faults(all_labels: Sequence[Mapping[int, str | Sequence[str]]], tree: Any) -> list[tuple[Key, str]]:
    """Compare the tree with the labels of `classes`, which come first, and of the sources."""
    main, *others = all_labels
    names = {name for label in main.values() for name in _names(label)}
    in_sets = {name for label in main.values() if not isinstance(label, str) for name in label}
    in_sources = {name for labels in others for label in labels.values() for name in _names(label)}
    first: dict[str, Key] = {}
    twice, strange = [], []
    for key, name, children in nodes_of(tree):
        if name in first:
            where = dotted(("classes", "tree", *first[name]))
            twice.append((("tree", *key), f"'{name}' is already at {where}; a name may occur only once in the tree."))
        elif not children and name not in names and not in_sets.intersection(key):
            only = f"'{name}' is a label of a source only; add it to classes.labels, which has all classes."
            text = only if name in in_sources else _not_a_label(name, children, sorted(names))
            strange.append((("tree", *key), text))
        first.setdefault(name, key)
    return [
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


def _color_faults(colors: Mapping[str, Any], known: Collection[str]) -> Iterator[tuple[Key, str]]:
    for name in colors:
        if name not in known:
            yield ("classes", "colors", name), f"'{name}' is not a class.{nearest(name, known)}"
