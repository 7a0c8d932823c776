"""The reductions over it that losses share. B,K,H,W are scores over leaves."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from seghiero_core.hierarchy.tensors import TreeTensors, tree_tensors
from seghiero_core.hierarchy.tree import Hierarchy


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


def labels(target: Tensor, tree: TreeTensors, ignore_index: int) -> Tensor:
    """B,H,W of node indices, with N (the last column of the tree's tables) where the target is `ignore_index`."""
    return target.where(target != ignore_index, len(tree.depths) - 1)


def look_up(table: Tensor, label: Tensor) -> Tensor:
    """`table[:, label]` for a table R,N+1 of few rows, without the slow path of indexing by a tensor."""
    return table.gather(1, label.flatten().expand(len(table), -1)).view(len(table), *label.shape)


def node_weights(class_weight: Tensor, tree: TreeTensors) -> Tensor:
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
    tree = tree_tensors(hierarchy, label.device)
    ratio = 1.0 if level_weights is None else level_weights
    v = [ratio**level for level in range(len(hierarchy.levels))] if isinstance(ratio, int | float) else list(ratio)
    v = like.new_tensor(v)
    shares = tree.labelled.to(like.dtype)
    if class_weight is not None:
        of_node = node_weights(class_weight, tree).to(like)
        for share, nodes, classes in zip(shares, tree.level_nodes, tree.class_of, strict=True):
            share *= of_node[nodes][classes]
    totals = shares @ label.flatten().bincount(minlength=len(tree.depths)).to(like.dtype)
    return shares * ((v / v.sum()) / torch.where(totals > 0, totals, 1))[:, None]


def masked_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Sum of values * weight over sum of weight; 0 (with a zero gradient) where no weight is."""
    total = weight.sum()
    return (values * weight).sum() / torch.where(total > 0, total, 1)
