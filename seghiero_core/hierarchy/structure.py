"""From the names of a tree to numbers: the order of the nodes, the levels, and how the nodes lie to each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from seghiero_core.hierarchy.values import walk


class Structure(NamedTuple):
    """A tree in numbers; N is the number of nodes, K of leaves, L of levels. The arrays are as in `Hierarchy`.

    Attributes:
        nodes: N names in channel order; the first K are the leaves.
        leaves: K names.
        levels: For each of the L levels, finest first, the node index of each class.
        parents: N int64.
        depths: N int64.
        node_to_level: L,N int64.
        covers: N,N bool.
        distance: N,N int64.
    """

    nodes: tuple[str, ...]
    leaves: tuple[str, ...]
    levels: tuple[tuple[int, ...], ...]
    parents: np.ndarray
    depths: np.ndarray
    node_to_level: np.ndarray
    covers: np.ndarray
    distance: np.ndarray


def tree_structure(tree: Mapping[str, Any], labels: Iterable[str]) -> Structure:
    """Number the nodes and levels of a tree.

    Args:
        tree: Nested mappings from name to children; a leaf has none.
        labels: Names of nodes, in the order of their mask values. The leaves among them come first, in this order.

    Returns:
        The tree in numbers.
    """
    walked = list(walk(tree))
    depth_of = {name: depth for name, _, depth, _ in walked}
    inner = [name for name, _, _, children in walked if children]
    is_inner = set(inner)
    leaves = [name for name in dict.fromkeys(labels) if name not in is_inner]
    named = is_inner.union(leaves)
    leaves += [name for name, *_ in walked if name not in named]
    num_levels = max(depth_of.values())
    # The sort is stable: the finest level comes first, and nodes of one depth keep the order in the tree.
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

    as_float = covers.astype(np.float32)  # numpy multiplies integers without BLAS, which is very slow
    common = (as_float.T @ as_float).astype(np.int64)  # ancestors that two nodes share, themselves included
    distance = depths[:, None] + depths[None, :] - 2 * common

    levels, node_to_level = [], []
    tree_order = np.array([index[name] for name, *_ in walked])
    is_leaf = np.arange(len(nodes)) < len(leaves)
    for level in range(num_levels):
        depth = num_levels - level
        is_class = (depths == depth) | ((depths < depth) & is_leaf)
        members = np.flatnonzero(is_class) if level == 0 else tree_order[is_class[tree_order]]
        numbers = np.arange(len(members)) + 1
        node_to_level.append((covers[members] * numbers[:, None]).sum(axis=0) - 1)
        levels.append(tuple(members.tolist()))
    return Structure(
        tuple(nodes), tuple(leaves), tuple(levels), parents, depths, np.stack(node_to_level), covers, distance
    )
