"""Cross-entropies: on the leaves, at every level, and among siblings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from seghiero_core.hierarchy.tensors import tree_tensors
from seghiero_core.hierarchy.tree import IGNORE_INDEX, Hierarchy
from seghiero_core.losses.inputs import check_inputs
from seghiero_core.losses.reductions import (
    group_logsumexp,
    labels,
    leaf_weights,
    level_shares,
    node_weights,
    total_weight,
    whole_step,
    widen,
)


def leaf_cross_entropy(
    logits: Tensor,
    target: Tensor,
    hierarchy: Hierarchy,
    *,
    ignore_index: int = IGNORE_INDEX,
    class_weight: Tensor | None = None,
    counts: Tensor | None = None,
    validate: bool = True,
) -> Tensor:
    """Compute the softmax cross-entropy over the leaves.

    With p the softmax over the K leaves and y the label of a pixel, the loss is the mean of

        -log p_y

    over the pixels that are labeled with a leaf. A pixel labeled with an inner node does not count.

    Args:
        logits: B,K,H,W over leaves, or B,N,H,W over nodes, of which the first K channels are read.
        target: B,H,W of node indices or `ignore_index`.
        hierarchy: The class tree, with K leaves and N nodes.
        ignore_index: Target value of the pixels that do not count.
        class_weight: (K) weights of the leaves. The mean is then weighted, as in `torch.nn.functional.cross_entropy`.
        counts: I,N+S+1 pixels of each label in each image of the whole step (see `label_counts`); the loss is then this
            batch's share of the step's. Default: this batch is the whole step.
        validate: Whether to check the target's values; on a GPU this synchronizes.

    Returns:
        Scalar loss, at least 0; 0 where no pixel counts.

    Raises:
        ValueError: When a shape, the number of channels or a target value is wrong.

    Example:
        >>> tree = {"vehicle": ["car", "bus"], "sky": None}
        >>> hierarchy = Hierarchy.from_config({"labels": ["car", "bus", "sky"], "tree": tree})
        >>> logits = torch.zeros(1, 3, 1, 2)
        >>> target = torch.tensor([[[0, IGNORE_INDEX]]])
        >>> leaf_cross_entropy(logits, target, hierarchy)  # log 3
        tensor(1.0986)
    """
    logits, target = check_inputs(
        logits, target, hierarchy, "leaves", ignore_index=ignore_index, validate=validate, class_weight=class_weight
    )
    logits, tree = widen(logits), tree_tensors(hierarchy, logits.device)
    label = labels(target, tree, ignore_index)
    leaves = logits.shape[1]
    weight = leaf_weights(class_weight, hierarchy, logits)
    total = F.cross_entropy(logits, label.where(label < leaves, -1), weight[:leaves], ignore_index=-1, reduction="sum")
    return total / total_weight(weight, whole_step(counts, label, hierarchy))


def level_cross_entropy(
    logits: Tensor,
    target: Tensor,
    hierarchy: Hierarchy,
    *,
    ignore_index: int = IGNORE_INDEX,
    level_weights: Sequence[float] | float | None = None,
    class_weight: Tensor | None = None,
    counts: Tensor | None = None,
    validate: bool = True,
) -> Tensor:
    """Compute one softmax cross-entropy per level and average them over the levels.

    With p_l the softmax over the logits of the nodes of level l, y_l the label's class at that level and v the
    `level_weights`,

        loss = sum_l v_l mean(-log p_l(y_l)) / sum_l v_l

    The mean of level l goes over the pixels that have a label at it: a pixel labeled with an inner node counts at
    that node's level and above. A leaf that stands for itself at several levels uses its one logit in each.

    Args:
        logits: B,N,H,W over nodes.
        target: B,H,W of node indices or `ignore_index`.
        hierarchy: The class tree, with K leaves, N nodes and L levels.
        ignore_index: Target value of the pixels that do not count.
        level_weights: L weights, finest level first, or the ratio of each to that of the next finer level; None for 1.
        class_weight: (K) weights of the leaves. The means are then weighted; a class of a coarser level weighs the
            mean of its leaves.
        counts: I,N+S+1 pixels of each label in each image of the whole step (see `label_counts`); the loss is then this
            batch's share of the step's. Default: this batch is the whole step.
        validate: Whether to check the target's values; on a GPU this synchronizes.

    Returns:
        Scalar loss, at least 0; 0 where no pixel counts.

    Raises:
        ValueError: When a shape, the number of channels or level weights, or a target value is wrong.

    Example:
        >>> tree = {"vehicle": ["car", "bus"], "sky": None}
        >>> hierarchy = Hierarchy.from_config({"labels": ["car", "bus", "sky"], "tree": tree})
        >>> logits = torch.zeros(1, 4, 1, 2)
        >>> target = torch.tensor([[[0, IGNORE_INDEX]]])
        >>> level_cross_entropy(logits, target, hierarchy)  # (log 3 + log 2) / 2
        tensor(0.8959)
    """
    logits, target = check_inputs(
        logits, target, hierarchy, "nodes", ignore_index=ignore_index, validate=validate, class_weight=class_weight
    )
    logits, tree = widen(logits), tree_tensors(hierarchy, logits.device)
    label = labels(target, tree, ignore_index)
    counts = whole_step(counts, label, hierarchy)
    shares = level_shares(counts, hierarchy, level_weights, class_weight, logits)
    loss = logits.new_zeros(())
    for nodes, classes, share in zip(tree.level_nodes, tree.class_of, shares, strict=True):
        level_logits = logits.index_select(1, nodes)
        loss = loss + (F.cross_entropy(level_logits, classes[label], reduction="none") * share[label]).sum()
    return loss


def conditional_cross_entropy(
    logits: Tensor,
    target: Tensor,
    hierarchy: Hierarchy,
    *,
    ignore_index: int = IGNORE_INDEX,
    class_weight: Tensor | None = None,
    counts: Tensor | None = None,
    validate: bool = True,
) -> Tensor:
    """Compute the cross-entropy of the label's path, with a softmax among the siblings at every branch.

    The probability of a node is the product of softmax(siblings) along its path from the root's child down, so the
    loss is the mean over valid pixels of

        sum over v on the path of y: -log softmax(z of v and its siblings)_v

    A pixel labeled with an inner node says nothing about that node's children.

    Reference: Redmon & Farhadi, "YOLO9000: Better, Faster, Stronger", CVPR 2017, section 4.

    Args:
        logits: B,N,H,W over nodes.
        target: B,H,W of node indices or `ignore_index`.
        hierarchy: The class tree, with K leaves and N nodes.
        ignore_index: Target value of the pixels that do not count.
        class_weight: (K) weights of the leaves. A pixel weighs what its label does, an inner node the mean of its
            leaves.
        counts: I,N+S+1 pixels of each label in each image of the whole step (see `label_counts`); the loss is then this
            batch's share of the step's. Default: this batch is the whole step.
        validate: Whether to check the target's values; on a GPU this synchronizes.

    Returns:
        Scalar loss, at least 0; 0 where no pixel counts.

    Raises:
        ValueError: When a shape, the number of channels or a target value is wrong.

    Example:
        >>> tree = {"vehicle": ["car", "bus"], "sky": None}
        >>> hierarchy = Hierarchy.from_config({"labels": ["car", "bus", "sky"], "tree": tree})
        >>> logits = torch.zeros(1, 4, 1, 2)
        >>> target = torch.tensor([[[0, IGNORE_INDEX]]])
        >>> conditional_cross_entropy(logits, target, hierarchy)  # log 2 for vehicle, log 2 for car
        tensor(1.3863)
    """
    logits, target = check_inputs(
        logits, target, hierarchy, "nodes", ignore_index=ignore_index, validate=validate, class_weight=class_weight
    )
    logits, tree = widen(logits), tree_tensors(hierarchy, logits.device)
    label = labels(target, tree, ignore_index)
    log_sums = group_logsumexp(logits, tree.family, len(tree.family_sizes))
    chain = tree.path[:, label].transpose(0, 1)  # B,D,H,W, the label repeated past its depth
    log_p = logits.gather(1, chain) - log_sums.gather(1, tree.family[chain])
    on_path = torch.arange(chain.shape[1], device=logits.device)[:, None, None] < tree.depths[label][:, None]
    nll = -log_p.where(on_path, 0).sum(dim=1)
    weight = node_weights(class_weight, tree, logits)
    return (nll * weight[label]).sum() / total_weight(weight, whole_step(counts, label, hierarchy))
