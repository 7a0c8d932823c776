"""Reductions and look-ups over the tree that several losses share."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from seghiero_core.hierarchy.tensors import TreeTensors, tree_tensors
from seghiero_core.hierarchy.tree import Hierarchy


def widen(logits: Tensor) -> Tensor:
    """Convert half precision to float32.

    Args:
        logits: Any shape.

    Returns:
        The same, any shape; float32 and float64 are left as they are.
    """
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def group_max(x: Tensor, group: Tensor, groups: int) -> Tensor:
    """Take the maximum over the channels of each group.

    Args:
        x: B,C,... of any trailing shape.
        group: (C) the group of each channel.
        groups: The number of groups.

    Returns:
        B,groups,..., -inf for a group without channels.
    """
    if groups == 1:
        return x.amax(dim=1, keepdim=True)
    out = x.new_full((x.shape[0], groups, *x.shape[2:]), -torch.inf)
    return max_into(out, group, x)


def max_into(out: Tensor, index: Tensor, x: Tensor) -> Tensor:
    """Raise channel `index[c]` of `out` to at least channel c of `x`, in place.

    Args:
        out: B,G,... to change.
        index: (C) a channel of `out` for each channel of `x`.
        x: B,C,... with the trailing shape of `out`.

    Returns:
        `out`, B,G,...
    """
    with warnings.catch_warnings():  # torch warns once per process that index_reduce_ is in beta
        warnings.filterwarnings("ignore", message="index_reduce", category=UserWarning)
        return out.index_reduce_(1, index, x, "amax")


def group_logsumexp(x: Tensor, group: Tensor, groups: int) -> Tensor:
    """Compute the log of the summed exponentials of each group's channels, differentiably.

    Every group is shifted by its own maximum, so that a group far below the others keeps its precision.

    Args:
        x: B,C,... of any trailing shape.
        group: (C) the group of each channel.
        groups: The number of groups.

    Returns:
        B,groups,...
    """
    peak = group_max(x.detach(), group, groups)
    shifted = (x - peak.index_select(1, group)).exp()
    return x.new_zeros(peak.shape).index_add(1, group, shifted).log() + peak


def labels(target: Tensor, tree: TreeTensors, ignore_index: int) -> Tensor:
    """Give ignored pixels the index N, the last column of the tree's tables.

    Args:
        target: B,H,W of node indices or `ignore_index`.
        tree: The tree as tensors, with N nodes.
        ignore_index: Target value of the pixels that do not count.

    Returns:
        B,H,W of indices from 0 to N.
    """
    return target.where(target != ignore_index, len(tree.depths) - 1)


def look_up(table: Tensor, label: Tensor) -> Tensor:
    """Compute `table[:, label]` for a table of few rows; indexing by a tensor is slower.

    Args:
        table: R,N+1 values of the labels.
        label: Any shape S, indices from 0 to N.

    Returns:
        R,S values.
    """
    return table.gather(1, label.flatten().expand(len(table), -1)).view(len(table), *label.shape)


def node_weights(class_weight: Tensor, tree: TreeTensors) -> Tensor:
    """Turn weights of the leaves into weights of the nodes; an inner node gets the mean of its leaves.

    Args:
        class_weight: (K) weights of the leaves.
        tree: The tree as tensors, with N nodes.

    Returns:
        (N) weights of the nodes.
    """
    leaves = tree.covers[:, : len(class_weight)].to(class_weight.device, class_weight.dtype)
    return ((leaves @ class_weight) / leaves.sum(dim=1)).to(tree.covers.device)


def level_shares(
    label: Tensor,
    hierarchy: Hierarchy,
    level_weights: Sequence[float] | float | None,
    class_weight: Tensor | None,
    like: Tensor,
    *,
    sets: bool = False,
) -> Tensor:
    """Compute how much -log P counts for a pixel of each label at each level.

    Over all pixels of `label` the shares of level l sum to v_l / sum(v), so that the loss is a plain sum. A set counts
    at every level.

    Args:
        label: B,H,W of indices from 0 to N+S, where N+S is ignored; S is the number of sets, or 0 for a loss that
            doesn't use them.
        hierarchy: The class tree, with L levels.
        level_weights: The L weights v, finest first, or the ratio of each to that of the next finer level; None for 1.
        class_weight: (K) weights of the leaves, or None.
        like: Any shape; its dtype and device are those of the result.
        sets: Whether the loss uses labels that are sets.

    Returns:
        L,N+S+1 shares.

    Raises:
        ValueError: When `level_weights` does not have one weight per level, or no weighted mean.
    """
    tree = tree_tensors(hierarchy, label.device)
    ratio = 1.0 if level_weights is None else level_weights
    levels = len(hierarchy.levels)
    weights = [ratio**level for level in range(levels)] if isinstance(ratio, int | float) else list(ratio)
    if len(weights) != levels:
        raise ValueError(f"level_weights: expected {levels} weights, one per level, found {len(weights)}")
    if not (min(weights) >= 0 and 0 < sum(weights) < math.inf):
        raise ValueError(f"level_weights: expected weights of at least 0, and one above 0, found {level_weights}")
    v = like.new_tensor(weights)
    shares = tree.labelled.to(like.dtype)
    if class_weight is not None:
        by_node = node_weights(class_weight, tree).to(like)
        for share, nodes, classes in zip(shares, tree.level_nodes, tree.class_of, strict=True):
            share *= by_node[nodes][classes]
    if sets:
        members = tree.set_leaves.to(like.dtype)
        weight = torch.ones(members.shape[1]) if class_weight is None else class_weight
        mean = members @ weight.to(like) / members.sum(dim=1).clamp(min=1)
        shares = shares[:, tree.label_node].where(tree.labelled[:, tree.label_node], mean)
    totals = shares @ label.flatten().bincount(minlength=shares.shape[1]).to(like.dtype)
    return shares * ((v / v.sum()) / torch.where(totals > 0, totals, 1))[:, None]


def masked_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Compute the weighted mean, or 0 with a zero gradient where all weights are 0.

    Args:
        values: Any shape.
        weight: The same shape as `values`, any shape; at least 0.

    Returns:
        Scalar sum(values * weight) / sum(weight).
    """
    total = weight.sum()
    return (values * weight).sum() / torch.where(total > 0, total, 1)
