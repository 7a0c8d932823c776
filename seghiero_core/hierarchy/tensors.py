"""The class tree as index tensors on a device, for losses, decoding and metrics."""

from __future__ import annotations

import functools
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from seghiero_core.hierarchy.tree import Hierarchy


def tree_tensors(hierarchy: Hierarchy, device: torch.device) -> TreeTensors:
    """Return the index tensors of a hierarchy on a device, built once for each pair.

    Args:
        hierarchy: The class tree.
        device: Where the tensors live.

    Returns:
        The tensors. While a graph is traced they are built again, because they then belong to that graph.
    """
    return TreeTensors(hierarchy, device) if torch.compiler.is_compiling() else _cached(hierarchy, device)


class TreeTensors:
    """Index tensors of a hierarchy on one device, each built when it is first used.

    N is the number of nodes, K of leaves, D the depth of the tree, and C[l] the number of classes of each of L levels.
    Where a dimension is N+1, the last entry is for ignored pixels, so that N can be used as the label of these. With S
    labels that are sets, N+S+1 is for all labels, and the last entry again for ignored pixels.

    Attributes:
        hierarchy: The class tree.
        device: Where the tensors live.
        level_sizes: C[l] of each level, finest first.
    """

    def __init__(self, hierarchy: Hierarchy, device: torch.device) -> None:
        self.hierarchy = hierarchy
        self.device = device
        self.level_sizes = tuple(len(level.nodes) for level in hierarchy.levels)

    @cached_property
    def parent_class(self) -> tuple[Tensor, ...]:
        """L tensors (C[l]): the class at level l+1 above each class of level l; all zeros (the root) at the last."""
        tables = [self._index(above) for above in self._classes_above()]
        return (*tables, self._index(np.zeros(self.level_sizes[-1])))

    @cached_property
    def leaf_to_level(self) -> tuple[Tensor, ...]:
        """L tensors (K): the class of each leaf."""
        return tuple(self._index(table) for table in self.hierarchy.leaf_to_level)

    @cached_property
    def children_by_number(self) -> tuple[tuple[tuple[Tensor, ...], Tensor], ...]:
        """For each of L-1 levels: the children of the classes above, which are sorted by the number of children.

        First (m,n) for each n, the children of those m classes that have n; then (C[l+1]), the position of each class
        among these.
        """
        return tuple(self._children_by_number(above) for above in self._classes_above())

    @cached_property
    def information(self) -> tuple[Tensor, ...]:
        """L tensors (C[l]) float32: 1 for a class of one leaf, 0 for one of all leaves.

        A class of n of K leaves has 1 - log n / log K: the fraction of the leaf's entropy that it settles if all leaves
        are equally likely (Goren et al., "Hierarchical Selective Classification", NeurIPS 2024).
        """
        total = max(len(self.hierarchy.leaves), 2)
        sizes = (np.bincount(classes) for classes in self.hierarchy.leaf_to_level)
        return tuple(self._tensor(1 - np.log(size) / np.log(total), torch.float32) for size in sizes)

    @cached_property
    def level_nodes(self) -> tuple[Tensor, ...]:
        """L tensors (C[l]): the node of each class."""
        return tuple(self._index(level.nodes) for level in self.hierarchy.levels)

    @cached_property
    def labelled(self) -> Tensor:
        """L,N+1 bool: whether a label has a class at each level."""
        return self._tensor(np.pad(self.hierarchy.node_to_level, ((0, 0), (0, 1)), constant_values=-1) >= 0, torch.bool)

    @cached_property
    def class_of(self) -> Tensor:
        """L,N+1: the class of a label at each level; 0 where it has none."""
        return self._index(np.pad(self.hierarchy.node_to_level, ((0, 0), (0, 1))).clip(min=0))

    @cached_property
    def label_node(self) -> Tensor:
        """N+S+1: the node that a label implies, for a set the lowest common ancestor; N for the root and ignored."""
        nodes = self.hierarchy.label_nodes
        return self._index(np.append(np.where(nodes < 0, len(self.hierarchy), nodes), len(self.hierarchy)))

    @cached_property
    def label_leaves(self) -> Tensor:
        """N+S+1,K bool: the leaves under each label, or in its set; false for ignored pixels."""
        return self._tensor(self._label_leaves(), torch.bool)

    @cached_property
    def label_distance(self) -> Tensor:
        """K,N+S+1 float32: edges from each leaf to the nearest leaf of a label; 0 for ignored pixels."""
        leaves = len(self.hierarchy.leaves)
        distance = self.hierarchy.distance[:leaves, :leaves]
        rows = [distance[members].min(axis=0) for members in self._label_leaves()[:-1]]
        return self._tensor(np.stack([*rows, np.zeros(leaves)], axis=1), torch.float32)

    @cached_property
    def path(self) -> Tensor:
        """D,N+1: the nodes from the child of the root down to each label; the label is repeated to the end."""
        depths = self.hierarchy.depths
        paths = [
            [*reversed((node, *self.hierarchy.ancestors(node)))] + [node] * int(depths.max() - depths[node])
            for node in range(len(self.hierarchy))
        ]
        return self._index(np.pad(np.array(paths).T, ((0, 0), (0, 1))))

    @cached_property
    def depths(self) -> Tensor:
        """N+1: 1 for children of the root, 0 for ignored pixels."""
        return self._index(np.append(self.hierarchy.depths, 0))

    @cached_property
    def covers(self) -> Tensor:
        """N,N bool: `covers[a, b]` is true when a is b or an ancestor of b."""
        return self._tensor(self.hierarchy.covers, torch.bool)

    @cached_property
    def below(self) -> Tensor:
        """N+1,N bool: `below[a, b]` is true when b is a descendant of a."""
        return self._tensor(
            np.pad(self.hierarchy.covers & ~np.eye(len(self.hierarchy), dtype=bool), ((0, 1), (0, 0))), torch.bool
        )

    @cached_property
    def distance(self) -> Tensor:
        """N+1,N+1 int16: edges between two nodes; the last row and column are the root's."""
        to_root = self.hierarchy.depths
        return self._tensor(
            np.block([[self.hierarchy.distance, to_root[:, None]], [np.append(to_root, 0)[None]]]), torch.int16
        )

    @cached_property
    def leaf_distance(self) -> Tensor:
        """K,K float32: edges between two leaves."""
        leaves = len(self.hierarchy.leaves)
        return self._tensor(self.hierarchy.distance[:leaves, :leaves], torch.float32)

    @cached_property
    def farthest(self) -> int:
        """The edges between the two leaves that are farthest apart."""
        leaves = len(self.hierarchy.leaves)
        return int(self.hierarchy.distance[:leaves, :leaves].max())

    @cached_property
    def leaf_parent(self) -> Tensor:
        """K: the parent of each leaf; the leaf itself where the parent is the root."""
        leaves = np.arange(len(self.hierarchy.leaves))
        parents = self.hierarchy.parents[leaves]
        return self._index(np.where(parents < 0, leaves, parents))

    @cached_property
    def root_leaves(self) -> Tensor:
        """The leaves whose parent is the root."""
        return self._index(np.flatnonzero(self.hierarchy.parents[: len(self.hierarchy.leaves)] < 0))

    @cached_property
    def inner_by_depth(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """The inner nodes of each depth from 2, and their parents; deepest first."""
        parents, depths = self.hierarchy.parents, self.hierarchy.depths
        is_inner = np.arange(len(self.hierarchy)) >= len(self.hierarchy.leaves)
        by_depth = [np.flatnonzero((depths == depth) & is_inner) for depth in range(int(depths.max()) - 1, 1, -1)]
        return tuple((self._index(nodes), self._index(parents[nodes])) for nodes in by_depth)

    @cached_property
    def family(self) -> Tensor:
        """N: the number of each node's family, that is of its siblings and itself."""
        return self._index(np.unique(self.hierarchy.parents, return_inverse=True)[1])

    @cached_property
    def family_sizes(self) -> Tensor:
        """The number of nodes in each family."""
        return self._index(np.unique(self.hierarchy.parents, return_counts=True)[1])

    def _classes_above(self) -> list[np.ndarray]:
        """L-1 arrays (C[l]): the class at level l+1 above each class of level l."""
        tables = []
        for finer, coarser in zip(self.hierarchy.leaf_to_level[:-1], self.hierarchy.leaf_to_level[1:], strict=True):
            tables.append(np.zeros(finer.max() + 1, dtype=np.int64))
            tables[-1][finer] = coarser
        return tables

    def _children_by_number(self, above: np.ndarray) -> tuple[tuple[Tensor, ...], Tensor]:
        """See `children_by_number`; of one level, from the class above each of its classes."""
        numbers = np.bincount(above)
        groups = [np.flatnonzero(numbers == n) for n in np.unique(numbers)]
        children = np.split(np.argsort(above, kind="stable"), np.cumsum(numbers)[:-1])  # of each class
        tables = tuple(self._index([children[one] for one in group]) for group in groups)
        return tables, self._index(np.argsort(np.concatenate(groups)))

    def _label_leaves(self) -> np.ndarray:
        """N+S+1,K bool: the leaves under each label, or in its set; false for ignored pixels."""
        leaves, sets = len(self.hierarchy.leaves), self.hierarchy.sets
        rows = [[leaf in members for leaf in range(leaves)] for members in (*sets, ())]
        return np.concatenate([self.hierarchy.covers[:, :leaves], rows])

    def _index(self, values: ArrayLike) -> Tensor:
        return self._tensor(values, torch.int64)

    def _tensor(self, values: ArrayLike, dtype: torch.dtype) -> Tensor:
        with torch.inference_mode(False):  # if validation builds them first, autograd must still be able to save them
            return torch.tensor(np.asarray(values), dtype=dtype, device=self.device)


_cached = functools.lru_cache(maxsize=32)(TreeTensors)
