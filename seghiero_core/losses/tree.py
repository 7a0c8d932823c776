"""The tree as tensors, and the reductions over it that losses share. B,K,H,W are scores over leaves."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from seghiero_core.hierarchy import Hierarchy


class Tree(NamedTuple):
    """Index tensors of a hierarchy on one device; N nodes, K leaves, L levels with C[l] classes, D the depth."""

    up: tuple[Tensor, ...]
    """L tensors: `up[l]` (C[l]) is the class at level l+1 above each class of level l; the last leads to the root."""
    sizes: tuple[int, ...]
    """The number of classes C[l] of each level."""
    labelled: Tensor
    """L,N+1 of bool: whether a label counts at a level. Column N stands for ignored pixels, here and below."""
    class_of: Tensor
    """L,N+1: class number of a label, 0 where it does not count."""
    chain: Tensor
    """D,N+1: the nodes from the root's child down to each label, the label itself repeated to the end."""
    covers: Tensor
    """N,N of bool: `covers[a, b]` where a is b or above it."""
    distance: Tensor
    """N,N: edges between two nodes."""
    below: Tensor
    """N+1,N of bool: `below[a, b]` where b is a descendant of a, not a itself."""
    depths: Tensor
    """N+1: 1 for the root's children, 0 for ignored pixels."""
    leaf_parent: Tensor
    """K: the parent of each leaf, the leaf itself where that is the root."""
    root_leaves: Tensor
    """The leaves whose parent is the root."""
    inner_by_depth: tuple[tuple[Tensor, Tensor], ...]
    """Deepest first, for each depth above 1: the inner nodes at it, and their parents."""


@functools.lru_cache(maxsize=32)
@torch.inference_mode(False)  # a validation pass may be the first to ask, and training must be able to save them
def tree_of(hierarchy: Hierarchy, device: torch.device) -> Tree:
    """The index tensors of `hierarchy` on `device`, built once."""

    def tensor(array: np.ndarray) -> Tensor:
        return torch.tensor(np.asarray(array, dtype=np.int64), device=device)

    up = []
    for finer, coarser in zip(hierarchy.leaf_to_level[:-1], hierarchy.leaf_to_level[1:], strict=True):
        above = np.zeros(finer.max() + 1, dtype=np.int64)
        above[finer] = coarser
        up.append(tensor(above))
    up.append(tensor(np.zeros(len(hierarchy.levels[-1].nodes))))
    depth = int(hierarchy.depths.max())
    chain = [
        [*reversed((node, *hierarchy.ancestors(node)))] + [node] * (depth - int(hierarchy.depths[node]))
        for node in range(len(hierarchy))
    ]
    leaves = np.arange(len(hierarchy.leaves))
    at_root = hierarchy.parents[leaves] < 0
    inner_by_depth = []
    for d in range(depth - 1, 1, -1):
        nodes = np.flatnonzero((hierarchy.depths == d) & (np.arange(len(hierarchy)) >= len(leaves)))
        inner_by_depth.append((tensor(nodes), tensor(hierarchy.parents[nodes])))
    return Tree(
        up=tuple(up),
        sizes=tuple(len(level.nodes) for level in hierarchy.levels),
        labelled=tensor(np.pad(hierarchy.node_to_level, ((0, 0), (0, 1)), constant_values=-1) >= 0).bool(),
        class_of=tensor(np.pad(hierarchy.node_to_level, ((0, 0), (0, 1))).clip(min=0)),
        chain=tensor(np.pad(np.array(chain).T, ((0, 0), (0, 1)))),
        covers=tensor(hierarchy.covers).bool(),
        distance=tensor(hierarchy.distance),
        below=tensor(np.pad(hierarchy.covers & ~np.eye(len(hierarchy), dtype=bool), ((0, 1), (0, 0)))).bool(),
        depths=tensor(np.append(hierarchy.depths, 0)),
        leaf_parent=tensor(np.where(at_root, leaves, hierarchy.parents[leaves])),
        root_leaves=tensor(leaves[at_root]),
        inner_by_depth=tuple(inner_by_depth),
    )


def widen(logits: Tensor) -> Tensor:
    """Half precision to float32; float32 and float64 as they are."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def group_max(x: Tensor, group: Tensor, groups: int) -> Tensor:
    """Maximum of the channels of B,C,... in each group: B,groups,..., -inf where a group has none."""
    if groups == 1:
        return x.amax(dim=1, keepdim=True)
    out = x.new_full((x.shape[0], groups, *x.shape[2:]), -torch.inf)
    return max_into(out, group, x)


def max_into(out: Tensor, index: Tensor, x: Tensor) -> Tensor:
    """Raise channel `index[c]` of `out` to at least channel c of `x`, in place."""
    with warnings.catch_warnings():  # torch calls index_reduce_ beta, once a process
        warnings.filterwarnings("ignore", message="index_reduce", category=UserWarning)
        return out.index_reduce_(1, index, x, "amax")


def group_logsumexp(x: Tensor, group: Tensor, groups: int) -> Tensor:
    """log of the summed exponentials of each group's channels: B,C,... to B,groups,... (differentiable).

    Every group is shifted by its own maximum, so that a group far below the others keeps its digits.
    """
    peak = group_max(x.detach(), group, groups)
    shifted = (x - peak.index_select(1, group)).exp()
    return x.new_zeros(peak.shape).index_add(1, group, shifted).log() + peak


def labels(target: Tensor, tree: Tree, ignore_index: int) -> Tensor:
    """B,H,W of node indices, with N (the last column of the tree's tables) where the target is `ignore_index`."""
    return target.where(target != ignore_index, len(tree.depths) - 1)


def look_up(table: Tensor, label: Tensor) -> Tensor:
    """`table[:, label]` for a table R,N+1 of few rows, without the slow path of indexing by a tensor."""
    return table.gather(1, label.flatten().expand(len(table), -1)).view(len(table), *label.shape)


def node_weights(class_weight: Tensor, tree: Tree) -> Tensor:
    """Weights of the leaves (K) to weights of the nodes (N): an inner node weighs the mean of its leaves."""
    leaves = tree.covers[:, : len(class_weight)].to(class_weight.device, class_weight.dtype)
    return ((leaves @ class_weight) / leaves.sum(dim=1)).to(tree.covers.device)


def level_shares(
    label: Tensor,
    hierarchy: Hierarchy,
    level_weights: Sequence[float] | float | None,
    class_weight: Tensor | None,
    like: Tensor,
) -> Tensor:
    """L,N+1: what -log P of a pixel counts at each level by its label; over all pixels level l sums to v_l / sum(v)."""
    tree = tree_of(hierarchy, label.device)
    ratio = 1.0 if level_weights is None else level_weights
    v = [ratio**level for level in range(len(hierarchy.levels))] if isinstance(ratio, int | float) else list(ratio)
    v = like.new_tensor(v)
    shares = tree.labelled.to(like.dtype)
    if class_weight is not None:
        of_node = node_weights(class_weight, tree).to(like)
        for share, level, classes in zip(shares, hierarchy.levels, tree.class_of, strict=True):
            share *= of_node[list(level.nodes)][classes]
    totals = shares @ label.flatten().bincount(minlength=len(tree.depths)).to(like.dtype)
    return shares * ((v / v.sum()) / torch.where(totals > 0, totals, 1))[:, None]


def masked_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Sum of values * weight over sum of weight; 0 (with a zero gradient) where no weight is."""
    total = weight.sum()
    return (values * weight).sum() / torch.where(total > 0, total, 1)
