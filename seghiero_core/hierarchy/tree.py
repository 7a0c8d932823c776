"""The tree of classes: built once from the config, never changed, handed to losses, decoding and metrics.

A node is a name of the tree. Nodes have one order everywhere, the order of channels: the leaves as their labels are
ordered, then the inner nodes, finest level first. A level is a partition of the leaves: level 0 is the leaves
themselves, the last level is the root's children. Levels align at the root, so a leaf that stands higher up than
others stands for itself at every level finer than its own depth. The root is no node.
"""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from seghiero_core.errors import ConfigError, nearest
from seghiero_core.hierarchy.presets import expand_preset

IGNORE_INDEX = -1
"""What stands for an ignored pixel after the loader. No node can have it, however many there are."""


@dataclass(frozen=True)
class Level:
    """One level of the tree: its classes, as node indices in the order in which it numbers them."""

    name: str
    nodes: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Hierarchy:
    """An immutable class tree. Arrays are numpy and read-only; N nodes, K leaves, L levels, levels finest first.

    Attributes:
        nodes: names in channel order; the first `len(leaves)` are the leaves.
        leaves: names of the leaves, in label order.
        levels: finest first.
        parents: N, the parent's node index, -1 where the parent is the root.
        depths: N, 1 for the root's children.
        leaf_to_level: L,K, the class number (position in `levels[l].nodes`) of each leaf at each level.
        node_to_level: L,N, the same for every node as a label; -1 at levels finer than an inner node.
        covers: N,N of bool, `covers[a, b]` is true where a is b or an ancestor of b.
        distance: N,N, the number of edges between two nodes (through the root where need be).
        values: node index of each mask value that is a label.
        colors: N,3 uint8 RGB.
        ignore: the mask value of pixels that count nowhere.
    """

    nodes: tuple[str, ...]
    leaves: tuple[str, ...]
    levels: tuple[Level, ...]
    parents: np.ndarray
    depths: np.ndarray
    leaf_to_level: np.ndarray
    node_to_level: np.ndarray
    covers: np.ndarray
    distance: np.ndarray
    values: Mapping[int, int]
    colors: np.ndarray
    ignore: int
    tree: Mapping[str, Any]

    @classmethod
    def from_config(cls, classes: Any) -> Hierarchy:
        """Build the tree from a `classes` section (a mapping, or an object with its keys as attributes).

        A mapping may name a `preset`. Raises UsageError where there is none of that name, and ConfigError with every
        fault of the section: a label twice, missing from the tree or twice in it, a tree leaf that is no label, an
        ignore value that is also a label's, a color that is no RGB triple.
        """
        section = expand_preset(classes) if isinstance(classes, Mapping) else classes.model_dump()
        labels = _labels_by_value(section["labels"])
        ignore = section.get("ignore", 255)
        tree = _nested(section["tree"]) if section.get("tree") else {name: {} for name in labels.values()}
        faults = _faults(labels, ignore, tree)
        colors = dict(section.get("colors") or {})
        known = [*labels.values(), *(name for name, *_ in _walk(tree))]
        for name, color in colors.items():
            if name not in known:
                faults.append(f"classes.colors: '{name}' is no class.{nearest(name, known)}")
            elif len(color) != 3 or not all(isinstance(c, int) and 0 <= c <= 255 for c in color):
                faults.append(f"classes.colors.{name}: expected three whole numbers from 0 to 255, found {color}.")
        if faults:
            raise ConfigError("\n".join(faults))
        return _build(labels, ignore, tree, colors)

    def __len__(self) -> int:
        return len(self.nodes)

    def level_names(self, level: int) -> tuple[str, ...]:
        """Names of the classes of a level, in its numbering."""
        return tuple(self.nodes[i] for i in self.levels[level].nodes)

    def index_of(self, name: str) -> int:
        """Node index of a name."""
        return self.nodes.index(name)

    def children(self, node: int) -> tuple[int, ...]:
        """Node indices of the children of `node`; -1 asks for the root's."""
        return tuple(int(i) for i in np.flatnonzero(self.parents == node))

    def ancestors(self, node: int) -> tuple[int, ...]:
        """Node indices from the parent of `node` up to the root's child."""
        path = []
        while (node := int(self.parents[node])) >= 0:
            path.append(node)
        return tuple(path)

    def label_table(self) -> np.ndarray:
        """Lookup from mask value to node index, of length max value + 1.

        Holds IGNORE_INDEX at the ignore value and -2 at values that are no label.
        """
        table = np.full(max(*self.values, self.ignore, 0) + 1, -2, dtype=np.int64)
        for value, node in self.values.items():
            table[value] = node
        table[self.ignore] = IGNORE_INDEX
        return table


def _labels_by_value(labels: Sequence[str] | Mapping[int, str]) -> dict[int, str]:
    pairs = labels.items() if isinstance(labels, Mapping) else enumerate(labels)
    return dict(sorted((int(value), name) for value, name in pairs))


def _nested(tree: Any) -> dict[str, Any]:
    """The tree as nested dicts with {} at leaves. Lists may hold names and one-key mappings."""
    if tree is None:
        return {}
    if isinstance(tree, str):
        return {tree: {}}
    if isinstance(tree, Mapping):
        return {str(name): _nested(children) for name, children in tree.items()}
    nested: dict[str, Any] = {}
    for item in tree:
        for name, children in _nested(item).items():
            if name in nested:
                raise ConfigError(f"classes.tree: '{name}' stands twice in one list.")
            nested[name] = children
    return nested


def _walk(tree: Mapping[str, Any], parent: str | None = None, depth: int = 1):
    """Every (name, parent, depth, children) of the tree, parents first, in the order in which it is written."""
    for name, children in tree.items():
        yield name, parent, depth, children
        yield from _walk(children, name, depth + 1)


def _faults(labels: Mapping[int, str], ignore: int, tree: Mapping[str, Any]) -> list[str]:
    names = list(labels.values())
    walked = [(name, children) for name, _, _, children in _walk(tree)]
    in_tree = [name for name, _ in walked]
    known_labels, known_names = set(names), set(in_tree)
    faults = [f"classes.labels: '{name}' is given twice." for name in _twice(names)]
    faults += [f"classes.tree: '{name}' stands twice in the tree." for name in _twice(in_tree)]
    faults += [
        f"classes.labels: '{name}' is missing from classes.tree.{nearest(name, in_tree)}"
        for name in names
        if name not in known_names
    ]
    faults += [
        f"classes.tree: the leaf '{name}' is no label.{nearest(name, names)}"
        for name, children in walked
        if not children and name not in known_labels
    ]
    if ignore in labels:
        faults.append(f"classes.ignore: {ignore} is also the mask value of '{labels[ignore]}'; choose another.")
    return faults


def _twice(names: Sequence[str]) -> list[str]:
    return sorted(name for name, count in Counter(names).items() if count > 1)


def _build(labels: Mapping[int, str], ignore: int, tree: Mapping[str, Any], colors: Mapping[str, Any]) -> Hierarchy:
    walked = list(_walk(tree))
    depth_of = {name: depth for name, _, depth, _ in walked}
    inner = [name for name, _, _, children in walked if children]
    is_inner = set(inner)
    leaves = [name for name in labels.values() if name not in is_inner]
    num_levels = max(depth_of.values())
    # Stable sort: inner nodes finest level (greatest depth) first, within a level as the tree is written.
    nodes = leaves + sorted(inner, key=lambda name: -depth_of[name])
    index = {name: i for i, name in enumerate(nodes)}

    parents = np.full(len(nodes), -1, dtype=np.int64)
    for name, parent, _, _ in walked:
        parents[index[name]] = -1 if parent is None else index[parent]
    depths = np.array([depth_of[name] for name in nodes], dtype=np.int64)
    covers = np.eye(len(nodes), dtype=bool)
    for name, parent, _, _ in walked:  # parents come first, so a parent's column is complete
        if parent is not None:
            covers[:, index[name]] |= covers[:, index[parent]]

    as_float = covers.astype(np.float32)  # numpy multiplies whole numbers without BLAS, very slowly
    common = (as_float.T @ as_float).astype(np.int64)  # ancestors-or-self shared by two nodes
    distance = depths[:, None] + depths[None, :] - 2 * common

    levels, leaf_to_level, node_to_level = [], [], []
    tree_order = [index[name] for name, *_ in walked]
    for level in range(num_levels):
        depth = num_levels - level
        is_class = (depths == depth) | ((depths < depth) & (np.arange(len(nodes)) < len(leaves)))
        members = np.flatnonzero(is_class) if level == 0 else np.array([i for i in tree_order if is_class[i]])
        number = np.full(len(nodes), -1, dtype=np.int64)
        number[members] = np.arange(len(members))
        of_node = (covers[members] * (np.arange(len(members)) + 1)[:, None]).sum(axis=0) - 1
        levels.append(Level("leaf" if level == 0 else f"level{level}", tuple(int(i) for i in members)))
        node_to_level.append(of_node)
        leaf_to_level.append(of_node[: len(leaves)])

    return Hierarchy(
        nodes=tuple(nodes),
        leaves=tuple(leaves),
        levels=tuple(levels),
        parents=_frozen(parents),
        depths=_frozen(depths),
        leaf_to_level=_frozen(np.stack(leaf_to_level)),
        node_to_level=_frozen(np.stack(node_to_level)),
        covers=_frozen(covers),
        distance=_frozen(distance),
        values={value: index[name] for value, name in labels.items()},
        colors=_frozen(_palette(nodes, colors)),
        ignore=ignore,
        tree=tree,
    )


def _palette(nodes: list[str], given: Mapping[str, Any]) -> np.ndarray:
    """N,3 uint8 RGB: the given color, or a hue by the golden angle, which keeps neighbours in the order apart."""
    palette = np.zeros((len(nodes), 3), dtype=np.uint8)
    for i, name in enumerate(nodes):
        hue, light = (i * 0.618034) % 1.0, (0.45, 0.65, 0.55)[i % 3]
        palette[i] = given.get(name) or [round(255 * c) for c in colorsys.hls_to_rgb(hue, light, 0.65)]
    return palette


def _frozen(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array
