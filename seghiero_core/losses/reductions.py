"""Reductions and look-ups over the tree that several losses share."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from seghiero_core.hierarchy.tensors import TreeTensors, tree_tensors
from seghiero_core.hierarchy.tree import IGNORE_INDEX, Hierarchy


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


def label_counts(target: Tensor, hierarchy: Hierarchy, *, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Count the pixels of each label in each image.

    Args:
        target: B,H,W of labels or `ignore_index`.
        hierarchy: The class tree, with N nodes and S sets.
        ignore_index: Target value of the pixels that do not count.

    Returns:
        B,N+S+1 pixels, int64; the last column counts the ignored ones. Those of all batches of a step, concatenated,
        are the `counts` of a loss.
    """
    ignored = len(hierarchy.label_nodes)
    return _count(target.long().where(target != ignore_index, ignored), ignored + 1)


def whole_step(counts: Tensor | None, label: Tensor | None, hierarchy: Hierarchy, *, sets: bool = False) -> Tensor:
    """Return the label counts of the whole step, as a loss needs them.

    Args:
        counts: I,N+S+1 of the I images of the step, as from `label_counts`; None where `label` is the whole step.
        label: B,H,W of indices from 0 to N, or N+S with `sets`; the last is ignored. Not needed with `counts`.
        hierarchy: The class tree, with N nodes and S sets.
        sets: Whether the loss uses labels that are sets. If not, they count as their lowest common ancestor, or as
            ignored where that is the root.

    Returns:
        I,N+1 pixels, or I,N+S+1 with `sets`, int64.

    Raises:
        ValueError: When `counts` has another number of columns than the hierarchy has labels, plus one.
    """
    labels, nodes = len(hierarchy.label_nodes), len(hierarchy)
    if counts is None:
        return _count(label, (labels if sets else nodes) + 1)
    if counts.ndim != 2 or counts.shape[1] != labels + 1:
        raise ValueError(
            f"counts: expected shape (I,{labels + 1}), one column per label and one for ignored pixels, found "
            f"{tuple(counts.shape)}; label_counts(target, hierarchy) gives them"
        )
    if sets or labels == nodes:
        return counts
    node = tree_tensors(hierarchy, counts.device).label_node
    return counts.new_zeros(len(counts), nodes + 1).index_add_(1, node, counts)


def _count(label: Tensor, size: int) -> Tensor:
    """B,size: the pixels of each label in each image. It never waits for a GPU, as bincount does."""
    label = label.flatten(1)
    return label.new_zeros(len(label), size).scatter_add_(1, label, label.new_ones(()).expand_as(label))


def labels(target: Tensor, tree: TreeTensors, ignore_index: int, *, sets: bool = False) -> Tensor:
    """Give ignored pixels the index N, or N+S with `sets`: the last one of the tree's tables.

    Args:
        target: B,H,W of labels or `ignore_index`.
        tree: The tree as tensors, with N nodes and S sets.
        ignore_index: Target value of the pixels that do not count.
        sets: Whether the loss uses labels that are sets.

    Returns:
        B,H,W of indices from 0 to N, or N+S.
    """
    return target.where(target != ignore_index, len(tree.label_node if sets else tree.depths) - 1)


def look_up(table: Tensor, label: Tensor) -> Tensor:
    """Compute `table[:, label]` for a table of few rows; indexing by a tensor is slower.

    Args:
        table: R,N+1 values of the labels.
        label: Any shape S, indices from 0 to N.

    Returns:
        R,S values.
    """
    return table.gather(1, label.flatten().expand(len(table), -1)).view(len(table), *label.shape)


def label_weights(class_weight: Tensor | None, tree: TreeTensors, like: Tensor) -> Tensor:
    """Turn weights of the leaves into weights of all labels; an inner node or a set gets the mean of its leaves.

    Args:
        class_weight: (K) weights of the leaves; None for 1.
        tree: The tree as tensors, with N nodes and S sets.
        like: Any shape; its dtype and device are those of the result.

    Returns:
        (N+S+1) weights, 0 for ignored pixels.
    """
    leaves = tree.label_leaves.to(like)
    weight = like.new_ones(leaves.shape[1]) if class_weight is None else class_weight.to(like)
    return (leaves * weight).sum(dim=1) / leaves.sum(dim=1).clamp(min=1)  # a matrix product would be cast by autocast


def node_weights(class_weight: Tensor | None, tree: TreeTensors, like: Tensor) -> Tensor:
    """Turn weights of the leaves into weights of the nodes, as `label_weights` does, for a loss that knows no sets.

    Args:
        class_weight: (K) weights of the leaves; None for 1.
        tree: The tree as tensors, with N nodes.
        like: Any shape; its dtype and device are those of the result.

    Returns:
        (N+1) weights, 0 for ignored pixels.
    """
    weights = label_weights(class_weight, tree, like)
    return torch.cat([weights[: len(tree.hierarchy)], weights[-1:]])


def level_shares(
    counts: Tensor,
    hierarchy: Hierarchy,
    level_weights: Sequence[float] | float | None,
    class_weight: Tensor | None,
    like: Tensor,
    *,
    every_level: bool = False,
) -> Tensor:
    """Compute how much -log P counts for a pixel of each label at each level.

    Over all pixels of the step the shares of level l sum to v_l / sum(v), so that the loss is a plain sum.

    Args:
        counts: I,N+S+1 pixels of each label in the images of the step, from `whole_step`; S is the number of sets, or
            0 without `every_level`.
        hierarchy: The class tree, with L levels.
        level_weights: The L weights v, finest first, or the ratio of each to that of the next finer level; None for 1.
        class_weight: (K) weights of the leaves, or None.
        like: Any shape; its dtype and device are those of the result.
        every_level: Whether labels, and sets among them, also count at the levels at which they have no class. There a
            label weighs the mean of its leaves. The shares of an inner node are added to the one of its own level,
            since the probability is the same.

    Returns:
        L,N+S+1 shares.

    Raises:
        ValueError: When `level_weights` does not have one weight per level, or no weighted mean.
    """
    tree = tree_tensors(hierarchy, counts.device)
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
        by_node = node_weights(class_weight, tree, like)
        for share, nodes, classes in zip(shares, tree.level_nodes, tree.class_of, strict=True):
            share *= by_node[nodes][classes]
    if every_level:
        by_label = label_weights(class_weight, tree, like)
        shares = shares[:, tree.label_node].where(tree.labelled[:, tree.label_node], by_label)
    shares = shares * (v / v.sum() / total_weight(shares, counts))[:, None]
    if every_level:
        n = len(hierarchy)
        finer = shares[:, :n].where(~tree.labelled[:, :n], 0)
        own = tree.labelled[:, :n].int().argmax(dim=0)  # the finest level at which a node is a class
        shares[:, :n] = (shares[:, :n] - finer).scatter_add(0, own[None], finer.sum(dim=0)[None])
    return shares


def leaf_weights(class_weight: Tensor | None, hierarchy: Hierarchy, like: Tensor) -> Tensor:
    """Extend weights of the leaves to all labels, for a loss that uses only pixels labeled with a leaf.

    Args:
        class_weight: (K) weights of the leaves; None for 1.
        hierarchy: The class tree, with N nodes.
        like: Any shape; its dtype and device are those of the result.

    Returns:
        (M) weights of the M = N+1 labels, 0 for inner nodes and ignored pixels.
    """
    leaves = len(hierarchy.leaves)
    weight = like.new_ones(leaves) if class_weight is None else class_weight.to(like)
    return F.pad(weight, (0, len(hierarchy) + 1 - leaves))


def total_weight(weight: Tensor, counts: Tensor) -> Tensor:
    """Add up the weights of a step's pixels.

    Args:
        weight: N+1 weights of the labels, or L,N+1.
        counts: I,N+1 pixels of each label in the images of the step.

    Returns:
        Scalar, or (L); 1 instead of 0, so that a sum over no pixels can be divided by it.
    """
    total = (weight * counts.sum(dim=0).to(weight.dtype)).sum(dim=-1)  # a matrix product would be cast by autocast
    return torch.where(total > 0, total, 1)


def images_with(counts: Tensor) -> Tensor:
    """Count the images with a pixel that counts.

    Args:
        counts: I,C pixels of the labels that count in the images of the step.

    Returns:
        Scalar, int64; 1 instead of 0, so that a sum over no images can be divided by it.
    """
    return (counts > 0).any(dim=1).sum().clamp(min=1)


def masked_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Compute the weighted mean over the last dimension, or 0 with a zero gradient where all weights are 0.

    Args:
        values: S,C with any leading shape S.
        weight: S,C of at least 0.

    Returns:
        S, of any shape: sum(values * weight) / sum(weight).
    """
    total = weight.sum(dim=-1)
    return (values * weight).sum(dim=-1) / torch.where(total > 0, total, 1)
