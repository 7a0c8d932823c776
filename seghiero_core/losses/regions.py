"""Losses over the leaves that measure regions or weigh hard pixels: Dice, Lovász-softmax, focal.

All read a softmax over the leaves. A pixel labeled with an inner node has no leaf and does not count.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seghiero_core.hierarchy.tensors import tree_tensors
from seghiero_core.hierarchy.tree import IGNORE_INDEX, Hierarchy
from seghiero_core.losses.inputs import check_inputs
from seghiero_core.losses.reductions import (
    images_with,
    label_counts,
    labels,
    leaf_weights,
    masked_mean,
    total_weight,
    whole_step,
    widen,
)


def dice(
    logits: Tensor,
    target: Tensor,
    hierarchy: Hierarchy,
    *,
    ignore_index: int = IGNORE_INDEX,
    smooth: float = 1.0,
    counts: Tensor | None = None,
    validate: bool = True,
) -> Tensor:
    """Compute the soft Dice loss, the mean over the images of the mean over the leaves that occur in the image.

    With p the softmax over the leaves, y the one-hot labels and sums over all pixels of the image that are labeled with
    a leaf, the loss of a leaf in an image is

        1 - (2 sum(p y) + smooth) / (sum(p) + sum(y) + smooth)

    An image without a pixel labeled with a leaf does not count.

    Reference: Milletari et al., "V-Net", 3DV 2016.

    Args:
        logits: B,K,H,W over leaves, or B,N,H,W over nodes, of which the first K channels are read.
        target: B,H,W of node indices or `ignore_index`.
        hierarchy: The class tree, with K leaves and N nodes.
        ignore_index: Target value of the pixels that do not count.
        smooth: Pixels added to both sides of the fraction, at least 0.
        counts: I,N+S+1 pixels of each label in each image of the whole step (see `label_counts`); the loss is then this
            batch's share of the step's. Default: this batch is the whole step.
        validate: Whether to check the target's values; on a GPU this synchronizes.

    Returns:
        Scalar loss, 0 to 1; 0 where no pixel counts.

    Raises:
        ValueError: When a shape, the number of channels or a target value is wrong.

    Example:
        >>> tree = {"vehicle": ["car", "bus"], "sky": None}
        >>> hierarchy = Hierarchy.from_config({"labels": ["car", "bus", "sky"], "tree": tree})
        >>> target = torch.tensor([[[0, 2, IGNORE_INDEX]]])
        >>> logits = torch.zeros(1, 3, 1, 3)
        >>> dice(logits, target, hierarchy, smooth=0.0)  # car and sky: 1 - (2/3) / (2/3 + 1)
        tensor(0.6000)
        >>> only_sky = torch.tensor([[[2, 2, 2]]])  # 1 - (2/3 * 3) / (1/3 * 3 + 3)
        >>> dice(logits, only_sky, hierarchy, smooth=0.0)
        tensor(0.5000)
        >>> dice(logits.repeat(2, 1, 1, 1), torch.cat([target, only_sky]), hierarchy, smooth=0.0)  # their mean
        tensor(0.5500)
    """
    sums = dice_sums(logits, target, hierarchy, ignore_index=ignore_index, validate=validate)
    if counts is None:
        counts = label_counts(target, hierarchy, ignore_index=ignore_index)
    return dice_of_sums(*sums, hierarchy, smooth=smooth, counts=counts)


def dice_sums(
    logits: Tensor, target: Tensor, hierarchy: Hierarchy, *, ignore_index: int = IGNORE_INDEX, validate: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute what the Dice loss sums over pixels; the sums of some rows add up to those of all.

    Args:
        logits: As for `dice`, B,C,H,W.
        target: B,H,W of node indices or `ignore_index`.
        hierarchy: The class tree, with K leaves.
        ignore_index: Target value of the pixels that do not count.
        validate: Whether to check the target's values; on a GPU this synchronizes.

    Returns:
        sum(p y), sum(p) and sum(y) of each leaf in each image, B,K.

    Raises:
        ValueError: When a shape, the number of channels or a target value is wrong.
    """
    logits, target = check_inputs(logits, target, hierarchy, "leaves", ignore_index=ignore_index, validate=validate)
    label, leaves = labels(target, tree_tensors(hierarchy, logits.device), ignore_index), logits.shape[1]
    overlap, total = _Overlaps.apply(widen(logits), label.clamp(max=leaves))
    return overlap, total, whole_step(None, label, hierarchy)[:, :leaves].to(total)


def dice_of_sums(
    overlap: Tensor, total: Tensor, size: Tensor, hierarchy: Hierarchy, *, counts: Tensor, smooth: float = 1.0
) -> Tensor:
    """Compute the Dice loss from what `dice_sums` returned for all rows.

    Args:
        overlap: B,K of sum(p y).
        total: B,K of sum(p).
        size: B,K of sum(y).
        hierarchy: The class tree, with K leaves.
        counts: As for `dice`, I,N+S+1.
        smooth: Pixels added to both sides of the fraction, at least 0.

    Returns:
        Scalar loss.
    """
    score = (2 * overlap + smooth) / (total + size + smooth).clamp(min=1e-12)
    images = images_with(whole_step(counts, None, hierarchy)[:, : len(hierarchy.leaves)])
    return masked_mean(1 - score, (size > 0).to(score)).sum() / images


class _Overlaps(torch.autograd.Function):
    """Two sums (B,K) of a softmax p over leaves: of p at the pixels of each leaf, and of p at all pixels that count.

    `logits` B,K,H,W; `leaf` B,H,W is K where a pixel does not count. With a and t the gradients of the two sums, the
    gradient g with respect to p is t + a at the label and t elsewhere; with respect to the logits it is
    p (g - mean of g under p).
    """

    @staticmethod
    def forward(ctx, logits: Tensor, leaf: Tensor) -> tuple[Tensor, Tensor]:
        classes = logits.shape[1]
        leaf = leaf.flatten(1)
        p = logits.flatten(2).softmax(dim=1)
        if (leaf == classes).any():
            p *= (leaf < classes)[:, None]
        at_label = p.gather(1, leaf.clamp(max=classes - 1)[:, None])  # 0 where a pixel does not count
        overlap = p.new_zeros(len(p), classes + 1).scatter_add_(1, leaf, at_label[:, 0])
        ctx.save_for_backward(p, leaf, at_label)
        ctx.shape = logits.shape
        return overlap[:, :classes], p.sum(dim=2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, overlap_grad: Tensor, total_grad: Tensor):
        p, leaf, at_label = ctx.saved_tensors
        label = leaf.clamp(max=p.shape[1] - 1)[:, None]
        at_label = at_label * overlap_grad.gather(1, label[:, 0])[:, None]
        mean = torch.matmul(total_grad[:, None], p) + at_label
        grad = (p * total_grad[:, :, None]).scatter_add_(1, label, at_label)
        return grad.addcmul_(p, mean, value=-1).view(ctx.shape), None


def lovasz(
    logits: Tensor,
    target: Tensor,
    hierarchy: Hierarchy,
    *,
    ignore_index: int = IGNORE_INDEX,
    counts: Tensor | None = None,
    validate: bool = True,
) -> Tensor:
    """Compute the Lovász-softmax loss, the mean over the images of the mean over the leaves that occur in the image.

    It extends the Jaccard loss of a set of pixels, 1 - intersection / union, to probabilities. With the errors of a
    leaf |y - p| sorted in descending order over all pixels of the image that are labeled with a leaf, its loss in the
    image is

        sum_i error_i (jaccard loss of the first i pixels - jaccard loss of the first i - 1)

    An image without a pixel labeled with a leaf does not count.

    Reference: Berman et al., "The Lovász-Softmax Loss", CVPR 2018, eq. 9-11.

    Args:
        logits: B,K,H,W over leaves, or B,N,H,W over nodes, of which the first K channels are read.
        target: B,H,W of node indices or `ignore_index`.
        hierarchy: The class tree, with K leaves and N nodes.
        ignore_index: Target value of the pixels that do not count.
        counts: I,N+S+1 pixels of each label in each image of the whole step (see `label_counts`); the loss is then this
            batch's share of the step's. Default: this batch is the whole step.
        validate: Whether to check the target's values; on a GPU this synchronizes.

    Returns:
        Scalar loss, 0 to 1; 0 where no pixel counts.

    Raises:
        ValueError: When a shape, the number of channels or a target value is wrong.

    Example:
        >>> tree = {"vehicle": ["car", "bus"], "sky": None}
        >>> hierarchy = Hierarchy.from_config({"labels": ["car", "bus", "sky"], "tree": tree})
        >>> target = torch.tensor([[[0, 2, IGNORE_INDEX]]])
        >>> logits = torch.zeros(1, 3, 1, 3)
        >>> lovasz(logits, target, hierarchy)  # car and sky: errors 2/3 and 1/3, steps 1 and 0
        tensor(0.6667)
        >>> only_ignored = torch.full((1, 1, 3), IGNORE_INDEX)
        >>> lovasz(logits.repeat(2, 1, 1, 1), torch.cat([target, only_ignored]), hierarchy)
        tensor(0.6667)
    """
    logits, target = check_inputs(logits, target, hierarchy, "leaves", ignore_index=ignore_index, validate=validate)
    label, leaves = labels(target, tree_tensors(hierarchy, logits.device), ignore_index), logits.shape[1]
    probability = widen(logits).softmax(dim=1).flatten(2)  # B,K,P
    leaf = label.flatten(1)[:, None]
    truth = (leaf == torch.arange(leaves, device=leaf.device)[:, None]).to(probability)
    errors = (truth - probability).abs().where(leaf < leaves, -1)  # pixels that do not count sort last
    order = errors.detach().argsort(dim=2, descending=True)
    truth, sorted_errors = truth.gather(2, order), errors.gather(2, order)
    size = truth.sum(dim=2, keepdim=True)
    missed = size - truth.cumsum(dim=2)
    jaccard = 1 - missed / (size + (1 - truth).cumsum(dim=2)).clamp(min=1)
    steps = torch.diff(jaccard, dim=2, prepend=torch.zeros_like(size))
    leaf_loss = (sorted_errors.clamp(min=0) * steps).sum(dim=2)
    images = images_with(whole_step(counts, label, hierarchy)[:, :leaves])
    return masked_mean(leaf_loss, (size[:, :, 0] > 0).to(leaf_loss)).sum() / images


def focal(
    logits: Tensor,
    target: Tensor,
    hierarchy: Hierarchy,
    *,
    ignore_index: int = IGNORE_INDEX,
    gamma: float = 2.0,
    class_weight: Tensor | None = None,
    counts: Tensor | None = None,
    validate: bool = True,
) -> Tensor:
    """Compute the softmax focal loss.

    With p the softmax probability of a pixel's label, the loss is the mean over the pixels labeled with a leaf of

        -(1 - p)^gamma log p

    Reference: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017.

    Args:
        logits: B,K,H,W over leaves, or B,N,H,W over nodes, of which the first K channels are read.
        target: B,H,W of node indices or `ignore_index`.
        hierarchy: The class tree, with K leaves and N nodes.
        ignore_index: Target value of the pixels that do not count.
        gamma: How much less a well-classified pixel weighs, at least 0; 0 gives `leaf_cross_entropy`.
        class_weight: (K) weights of the leaves. The mean is then weighted.
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
        >>> target = torch.tensor([[[0, 2, IGNORE_INDEX]]])
        >>> logits = torch.zeros(1, 3, 1, 3)
        >>> focal(logits, target, hierarchy)  # (2/3)^2 log 3
        tensor(0.4883)
    """
    logits, target = check_inputs(
        logits, target, hierarchy, "leaves", ignore_index=ignore_index, validate=validate, class_weight=class_weight
    )
    logits, label = widen(logits), labels(target, tree_tensors(hierarchy, logits.device), ignore_index)
    weight = leaf_weights(class_weight, hierarchy, logits)
    nll = F.cross_entropy(logits, label.where(label < logits.shape[1], 0), reduction="none")
    missing = -torch.expm1(-nll)  # 1 - p; clamped below, because the slope of the power at 0 is infinite for gamma < 1
    loss = missing.clamp(min=1e-12).pow(gamma) * nll * weight[label]
    return loss.sum() / total_weight(weight, whole_step(counts, label, hierarchy))
