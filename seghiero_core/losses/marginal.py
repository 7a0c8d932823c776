"""Cross-entropy of summed leaf probabilities at every level."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from seghiero_core.hierarchy.tensors import TreeTensors, tree_tensors
from seghiero_core.hierarchy.tree import IGNORE_INDEX, Hierarchy
from seghiero_core.losses.fused import sum_over_pixels
from seghiero_core.losses.inputs import check_inputs
from seghiero_core.losses.reductions import group_max, labels, level_shares, look_up, whole_step, widen


def marginal_cross_entropy(
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
    """Compute the cross-entropy at every level, where the probability of a class is the sum of its leaves'.

    There is one softmax over the leaves. With P_l(y) the summed probability of the label's class at level l and v the
    `level_weights`,

        loss = sum_l v_l mean(-log P_l(y)) / sum_l v_l

    A pixel labeled with an inner node counts at every level, too. At the levels finer than the node, P_l(y) is the
    probability of the node: all that its label says. So does a pixel labeled with a set of leaves, one of which it is:
    at levels where they share a class, it counts with that class, and at the finer ones with the summed probability of
    the set. If coarse labels didn't count at the finer levels, classes that are leaves and siblings of groups would be
    learned as too frequent (see docs/mixed-labels.md).

    Levels are averaged rather than summed, so that the loss has the scale of a plain cross-entropy at any depth.

    References: Muller & Smith, "A Hierarchical Loss for Semantic Segmentation", VISAPP 2020. For sets: Bevandic et al.,
    "Multi-domain semantic segmentation with overlapping labels", WACV 2022.

    Args:
        logits: B,K,H,W over leaves, or B,N,H,W over nodes, of which the first K channels are read.
        target: B,H,W of labels (node indices, or N + i for set i) or `ignore_index`.
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
        >>> logits = torch.zeros(1, 3, 1, 2)
        >>> target = torch.tensor([[[0, IGNORE_INDEX]]])
        >>> marginal_cross_entropy(logits, target, hierarchy)  # (-log 1/3 - log 2/3) / 2
        tensor(0.7520)
    """
    logits, target = check_inputs(
        logits,
        target,
        hierarchy,
        "leaves",
        ignore_index=ignore_index,
        validate=validate,
        class_weight=class_weight,
        sets=True,
    )
    tree = tree_tensors(hierarchy, logits.device)
    label = labels(target, tree, ignore_index, sets=True)
    counts = whole_step(counts, label, hierarchy, sets=True)
    shares = level_shares(counts, hierarchy, level_weights, class_weight, widen(logits[:0]), every_level=True)
    return sum_over_pixels(logits, label, functools.partial(_piece, shares=shares, tree=tree))


def _piece(
    z: Tensor, label: Tensor, with_grad: bool, *, shares: Tensor, tree: TreeTensors
) -> tuple[Tensor, Tensor | None]:
    """Sum of -share * log P_l(label) over levels and pixels, and its gradient with respect to the logits z (b,K,p).

    It goes up the tree on the classes' log-sums and back down with the gradient, so that each leaf costs a single
    exponential. Every class is shifted by its own maximum, so that one far below the others keeps its precision.
    """
    node = look_up(tree.label_node[None], label)[0] if tree.hierarchy.sets else label
    targets, shares = look_up(tree.class_of, node)[:, :, None], look_up(shares, label)[:, :, None]  # L,b,1,p
    set_share = None
    if tree.hierarchy.sets:  # at levels where a set has no class, its share goes to the probability of the set
        closed = shares.where(look_up(tree.labelled, node)[:, :, None], 0)
        shares, set_share = closed, (shares - closed).sum(dim=0)
    log_sums, exps, totals, log_p = z, [], [], []
    for group, size, target in zip(tree.parent_class, (*tree.level_sizes[1:], 1), targets, strict=True):
        log_p.append(log_sums.gather(1, target))
        peak = group_max(log_sums, group, size)
        exp = torch.sub(log_sums, _spread(peak, group)).exp_()
        total = exp.sum(dim=1, keepdim=True) if size == 1 else torch.zeros_like(peak).index_add_(1, group, exp)
        totals.append(total)
        exps.append(exp)
        log_sums = total.log().add_(peak)
    loss = ((log_sums - torch.stack(log_p)) * shares).sum()
    if set_share is not None:
        members = tree.label_leaves[label].transpose(1, 2)  # b,K,p
        ignored = members.any(dim=1, keepdim=True).logical_not()  # any finite value does, as for nodes: the share is 0
        among = z.masked_fill(~(members | ignored), -torch.inf)
        loss = loss + ((log_sums - among.logsumexp(dim=1, keepdim=True)) * set_share).sum()
    if not with_grad:
        return loss, None
    grad = shares.sum(dim=0) if set_share is None else shares.sum(dim=0) + set_share
    for level in reversed(range(len(exps))):
        grad = exps[level].mul_(_spread(grad.div_(totals[level]), tree.parent_class[level]))
        grad.scatter_add_(1, targets[level], -shares[level])
    return loss, grad if set_share is None else grad.sub_(among.softmax(dim=1).mul_(set_share))


def _spread(x: Tensor, group: Tensor) -> Tensor:
    """The value of each class's group: b,groups,p to b,C,p. A single group stays b,1,p, which broadcasts."""
    return x if x.shape[1] == 1 else x.index_select(1, group)
