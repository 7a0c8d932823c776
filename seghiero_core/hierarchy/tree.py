"""The class tree: built once from the config, immutable, and passed to losses, decoding and metrics.

A node is a name of the tree. Nodes have one order everywhere, the order of channels: the leaves in the order of their
labels, then the inner nodes, finest level first. A level is a partition of the leaves: level 0 is the leaves
themselves, and the last level is the root's children. Levels are aligned at the root, so a leaf that is closer to the
root than others represents itself at every level finer than its own depth. The root is not a node.

A label is what a mask value stands for: a node, or a set of leaves ("one of these"). Set i is label N + i for N nodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from seghiero_core.errors import nearest, shorten
from seghiero_core.hierarchy.colors import assign_colors
from seghiero_core.hierarchy.section import ClassSection, MaskValues, read_classes
from seghiero_core.hierarchy.structure import tree_structure

if TYPE_CHECKING:
    from torch import Tensor

IGNORE_INDEX = -1
"""The target of ignored pixels. No node can have it, however many nodes there are."""
_NOT_A_LABEL = -2


@dataclass(frozen=True)
class Level:
    """One level of the tree.

    Attributes:
        name: `leaf` for level 0, then `level1`, `level2`, ...
        nodes: The node index of each class; the position in it is the class's number at this level.
    """

    name: str
    nodes: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Hierarchy:
    """An immutable class tree, built by `Hierarchy.from_config`.

    Arrays are numpy and read-only. N is the number of nodes, K of leaves, L of levels.

    Attributes:
        nodes: N names in channel order; the first K are the leaves.
        leaves: K names, in the order of their mask values; those without one of their own follow in tree order.
        levels: L levels, finest first.
        parents: N int64, the node index of the parent; -1 for children of the root.
        depths: N int64, 1 for children of the root.
        leaf_to_level: L,K int64, the class number (position in `levels[l].nodes`) of each leaf at each level.
        node_to_level: L,N int64, the same for every node; -1 at levels finer than an inner node.
        covers: N,N bool, `covers[a, b]` is true when a is b or an ancestor of b.
        distance: N,N int64, the number of edges between two nodes.
        sets: The leaf indices of each label that is a set. A set of all leaves of a node is that node instead.
        values: The label (a node index, or N + i for set i) of each mask value that is one.
        colors: N,3 uint8 RGB.
        ignore: The mask value of ignored pixels.
        section: Where `values` and `ignore` are written in a config: "classes", or such as "dataset.sources.1".
        tree: Nested mappings from name to children; leaves have empty ones.
        sources: The same tree with the mask values of each of `dataset.sources`; see `of_source`.

    Example:
        >>> hierarchy = Hierarchy.from_config(
        ...     {"labels": ["sky", "car", "bus"], "tree": {"sky": None, "vehicle": ["car", "bus"]}}
        ... )
        >>> hierarchy.nodes
        ('sky', 'car', 'bus', 'vehicle')
        >>> [(level.name, hierarchy.level_names(i)) for i, level in enumerate(hierarchy.levels)]
        [('leaf', ('sky', 'car', 'bus')), ('level1', ('sky', 'vehicle'))]
        >>> hierarchy.to_target(np.array([[0, 2, 255]]))
        array([[ 0,  2, -1]])
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
    sets: tuple[tuple[int, ...], ...]
    values: Mapping[int, int]
    colors: np.ndarray
    ignore: int
    section: str
    tree: Mapping[str, Any]
    sources: tuple[Hierarchy, ...] = ()

    @classmethod
    def from_config(cls, config: Any) -> Hierarchy:
        """Build the tree from a YAML file, a whole config or a `classes` section.

        All forms follow one rule: what has `classes` is a whole config, and anything else is the section itself. In a
        whole config, `dataset.sources` may have labels, too.

        Args:
            config: A path (str or Path) to a YAML file of a whole config or of a `classes` section; or the content of
                such a file as a mapping, or as an object with the same names as attributes, such as a loaded config.
                The section has `labels` or `preset`, and may have `tree`, `ignore` and `colors`.

        Returns:
            The tree.

        Raises:
            UsageError: When `preset` is unknown.
            ConfigError: When the file is missing or isn't YAML, when there are no classes, or when the section is
                wrong: a label that is repeated or missing from the tree, a node that is repeated, a leaf of the tree
                that is not a label, an ignore value that is also a label's. The message lists every fault.
        """
        return _build(read_classes(config))

    def __len__(self) -> int:
        return len(self.nodes)

    def of_source(self, source: int | None) -> Hierarchy:
        """Return the tree with the mask values of one data source.

        Args:
            source: A position in `dataset.sources`; None for a data set without sources.

        Returns:
            A tree with the same nodes and sets. Its `values`, `ignore` and `to_target` are the source's.
        """
        return self if source is None else self.sources[source]

    def level_names(self, level: int) -> tuple[str, ...]:
        """Return the names of the classes of a level.

        Args:
            level: Position in `levels`; 0 is the leaves.

        Returns:
            Names in the order of the level's class numbers.
        """
        return tuple(self.nodes[i] for i in self.levels[level].nodes)

    def index_of(self, name: str) -> int:
        """Return the node index of a name.

        Args:
            name: The name of a node.

        Returns:
            Its position in `nodes`.

        Raises:
            ValueError: When there is no such node.
        """
        if name not in self.nodes:
            raise ValueError(f"unknown node '{name}'.{nearest(name, self.nodes)}")
        return self.nodes.index(name)

    def children(self, node: int) -> tuple[int, ...]:
        """Return the children of a node.

        Args:
            node: A node index; -1 for the root.

        Returns:
            Node indices; none for a leaf.
        """
        return tuple(int(i) for i in np.flatnonzero(self.parents == node))

    def ancestors(self, node: int) -> tuple[int, ...]:
        """Return the nodes above a node.

        Args:
            node: A node index.

        Returns:
            Node indices from the parent up to the child of the root.
        """
        path = []
        while (node := int(self.parents[node])) >= 0:
            path.append(node)
        return tuple(path)

    @cached_property
    def label_nodes(self) -> np.ndarray:
        """(N+S) int64 for S sets: the node of each label; of a set, the lowest common ancestor, or -1 for the root."""
        above = np.array([self.covers[:, list(members)].all(axis=1) for members in self.sets]).reshape(-1, len(self))
        ancestors = np.where(above.any(axis=1), np.where(above, self.depths, 0).argmax(axis=1), -1)
        return _frozen(np.concatenate([np.arange(len(self)), ancestors]))

    @cached_property
    def label_to_level(self) -> np.ndarray:
        """L,N+S int64: the class number of each label at each level; -1 at levels where the label has no class."""
        return _frozen(np.pad(self.node_to_level, ((0, 0), (0, 1)), constant_values=-1)[:, self.label_nodes])

    def label_name(self, label: int) -> str:
        """Return the name of a label.

        Args:
            label: A node index, or N + i for set i.

        Returns:
            The name of the node; of a set those of its leaves, such as "car or bus".
        """
        members = (label,) if label < len(self) else self.sets[label - len(self)]
        return " or ".join(self.nodes[node] for node in members)

    def label_table(self) -> np.ndarray:
        """Return the lookup table from mask value to label.

        Returns:
            int64 of shape (V), where V is the largest mask value in use plus one. Holds IGNORE_INDEX at the ignore
            value and -2 at values that are not labels.
        """
        table = np.full(max(*self.values, self.ignore, 0) + 1, _NOT_A_LABEL, dtype=np.int64)
        for value, label in self.values.items():
            table[value] = label
        table[self.ignore] = IGNORE_INDEX
        return table

    def to_target(self, mask: np.ndarray | Tensor) -> np.ndarray | Tensor:
        """Turn a mask of label values into the target that losses and metrics take.

        Args:
            mask: H,W or B,H,W label values of any integer dtype.

        Returns:
            int64 labels of the same shape, IGNORE_INDEX where the mask has the ignore value: an array for an array, a
            tensor on the same device for a tensor.

        Raises:
            ValueError: When the mask has values that are not labels, or isn't of whole numbers.
        """
        if hasattr(mask, "new_tensor"):  # a tensor; torch is not imported here
            return mask.long().new_tensor(self.to_target(mask.cpu().numpy()))
        mask = np.asarray(mask)
        if mask.dtype.kind not in "iu":
            raise ValueError(f"expected a mask of integers, found {mask.dtype}; convert it, e.g. to uint8")
        table = self.label_table()
        if mask.size == 0 or (mask.min() >= 0 and mask.max() < len(table)):
            target = table[mask]
            if not (target == _NOT_A_LABEL).any():
                return target
        unknown = [value for value in np.unique(mask).tolist() if value not in self.values and value != self.ignore]
        raise ValueError(
            f"the mask has values that are not labels: {shorten(unknown, 10)}. Labels are "
            f"{shorten(list(self.values), 20)}, and {self.ignore} is ignored. Fix the mask, or add the values to the "
            "labels."
        )


def _build(section: ClassSection) -> Hierarchy:
    found = tree_structure(section.tree, [name for name in section.labels.values() if isinstance(name, str)])
    index = {name: i for i, name in enumerate(found.nodes)}
    sets = list(dict.fromkeys(name for masks in (section, *section.sources) for name in masks.labels.values()))
    sets = [label for label in sets if not isinstance(label, str)]
    label_of = index | {names: len(index) + i for i, names in enumerate(sets)}
    colors = assign_colors(section.tree, section.colors)

    def with_values(masks: MaskValues) -> dict[str, Any]:
        values = {value: label_of[label] for value, label in masks.labels.items()}
        return {"values": values, "ignore": masks.ignore, "section": masks.section}

    hierarchy = Hierarchy(
        nodes=found.nodes,
        leaves=found.leaves,
        levels=tuple(
            Level("leaf" if level == 0 else f"level{level}", nodes) for level, nodes in enumerate(found.levels)
        ),
        parents=_frozen(found.parents),
        depths=_frozen(found.depths),
        leaf_to_level=_frozen(found.node_to_level[:, : len(found.leaves)].copy()),
        node_to_level=_frozen(found.node_to_level),
        covers=_frozen(found.covers),
        distance=_frozen(found.distance),
        sets=tuple(tuple(sorted(index[name] for name in names)) for names in sets),
        colors=_frozen(np.array([colors[name] for name in found.nodes], dtype=np.uint8)),
        tree=section.tree,
        **with_values(section),
    )
    return replace(hierarchy, sources=tuple(replace(hierarchy, **with_values(masks)) for masks in section.sources))


def _frozen(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array
