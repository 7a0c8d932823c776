"""Cross-entropy of summed leaf probabilities at every level."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from seghiero_core.hierarchy.tensors import TreeTensors, tree_tensors
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.losses.fused import sum_over_pixels
from seghiero_core.losses.reductions import group_max, labels, level_shares, look_up, widen


def marginal_cross_entropy(
    logits: Tensor,
    target: Tensor,
    hierarchy: Hierarchy,
    *,
    ignore_index: int = 255,
    level_weights: Sequence[float] | float | None = None,
    class_weight: Tensor | None = None,
) -> Tensor:
    """Cross-entropy at every level, where a class's probability is the sum of its leaves' (one softmax over leaves).

    Muller & Smith, "A Hierarchical Loss for Semantic Segmentation" (VISAPP 2020). `logits` B,K,H,W over leaves;
    `target` B,H,W of node indices. With P_l(y) the summed probability of the label's class at level l,

        loss = sum_l v_l mean(-log P_l(y)) / sum_l v_l

    where the mean of level l goes over the pixels that have a label at it: one labelled with an inner node counts at
    that node's level and above. Levels are averaged, not summed, so that the loss keeps the scale of a plain
    cross-entropy whatever the depth. `level_weights` holds v, finest first, or is the ratio of
    each to the next finer one's; all are 1 by default. `class_weight` (K) makes
    the means weighted; a class of a coarser level weighs the mean of its leaves.
    """
    tree = tree_tensors(hierarchy, logits.device)
    label = labels(target, tree, ignore_index)
    shares = level_shares(label, hierarchy, level_weights, class_weight, widen(logits[:0]))
    return sum_over_pixels(logits, label, functools.partial(_piece, shares=shares, tree=tree))


def _piece(
    z: Tensor, label: Tensor, with_grad: bool, *, shares: Tensor, tree: TreeTensors
) -> tuple[Tensor, Tensor | None]:
    """Sum over levels and pixels of -share * log P_l(label), and its gradient by the leaves' logits z (b,K,p).

    It goes up the tree on log-sums of the classes, and comes down the same way with the gradient, so that a leaf costs
    a single exponential. Every class is shifted by its own maximum: one far below the others keeps its digits.
    """
    targets, shares = look_up(tree.class_of, label)[:, :, None], look_up(shares, label)[:, :, None]  # L,b,1,p
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
    if not with_grad:
        return loss, None
    grad = shares.sum(dim=0)
    for level in reversed(range(len(exps))):
        grad = exps[level].mul_(_spread(grad.div_(totals[level]), tree.parent_class[level]))
        grad.scatter_add_(1, targets[level], -shares[level])
    return loss, grad


def _spread(x: Tensor, group: Tensor) -> Tensor:
    """What each class takes from its group: b,groups,p to b,C,p, or to what broadcasts there where all are in one."""
    return x if x.shape[1] == 1 else x.index_select(1, group)
