"""Losses over the leaves that measure regions or weigh hard pixels: Dice, Lovász-softmax, focal.

All read a softmax over the leaves. A pixel labeled with an inner node has no leaf and does not count.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seghiero_core.hierarchy.tree import IGNORE_INDEX, Hierarchy
from seghiero_core.losses.inputs import check_inputs
from seghiero_core.losses.reductions import masked_mean, widen


def dice(
    logits: Tensor,
    target: Tensor,
    hierarchy: Hierarchy,
    *,
    ignore_index: int = IGNORE_INDEX,
    smooth: float = 1.0,
    validate: bool = True,
) -> Tensor:
    """Compute the soft Dice loss, the mean over the leaves that occur among the batch's labels.

    With p the softmax over the leaves, y the one-hot labels and sums over all pixels of the batch that are labelled
    with a leaf, the loss of a leaf is

        1 - (2 sum(p y) + smooth) / (sum(p) + sum(y) + smooth)

    Reference: Milletari et al., "V-Net", 3DV 2016.

    Args:
        logits: B,K,H,W over leaves, or B,N,H,W over nodes, of which the first K channels are read.
        target: B,H,W of node indices or `ignore_index`.
        hierarchy: The class tree, with K leaves and N nodes.
        ignore_index: Target value of the pixels that do not count.
        smooth: Pixels added to both sides of the fraction, at least 0.
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
        >>> dice(logits, target, hierarchy, smooth=0.0)  # 1 - (2/3) / (2/3 + 1)
        tensor(0.6000)
    """
    logits, target = check_inputs(logits, target, hierarchy, "leaves", ignore_index=ignore_index, validate=validate)
    logits = widen(logits)
    classes = logits.shape[1]
    leaf = target.where((target != ignore_index) & (target < classes), classes)
    overlap, total = _Overlaps.apply(logits, leaf)
    size = leaf.flatten().bincount(minlength=classes + 1)[:classes].to(total)
    score = (2 * overlap + smooth) / (total + size + smooth).clamp(min=1e-12)
    return masked_mean(1 - score, (size > 0).to(score))


class _Overlaps(torch.autograd.Function):
    """Two sums (K) of a softmax p over leaves: of p at the pixels of each leaf, and of p at all pixels that count.

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
        overlap = p.new_zeros(classes + 1).scatter_add_(0, leaf.flatten(), at_label.flatten())
        ctx.save_for_backward(p, leaf, at_label)
        ctx.shape = logits.shape
        return overlap[:classes], p.sum(dim=(0, 2))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, overlap_grad: Tensor, total_grad: Tensor):
        p, leaf, at_label = ctx.saved_tensors
        label = leaf.clamp(max=p.shape[1] - 1)[:, None]
        at_label = at_label * overlap_grad.gather(0, label.flatten()).view(label.shape)
        mean = torch.matmul(total_grad, p)[:, None] + at_label
        grad = (p * total_grad[:, None]).scatter_add_(1, label, at_label)
        return grad.addcmul_(p, mean, value=-1).view(ctx.shape), None


def lovasz(
    logits: Tensor,
    target: Tensor,
    hierarchy: Hierarchy,
    *,
    ignore_index: int = IGNORE_INDEX,
    validate: bool = True,
) -> Tensor:
    """Compute the Lovász-softmax loss, the mean over the leaves that occur among the batch's labels.

    It extends the Jaccard loss of a set of pixels, 1 - intersection / union, to probabilities. With the errors of a
    leaf |y - p| sorted in descending order over all pixels of the batch that are labeled with a leaf, its loss is

        sum_i error_i (jaccard loss of the first i pixels - jaccard loss of the first i - 1)

    Reference: Berman et al., "The Lovász-Softmax Loss", CVPR 2018, eq. 9-11.

    Args:
        logits: B,K,H,W over leaves, or B,N,H,W over nodes, of which the first K channels are read.
        target: B,H,W of node indices or `ignore_index`.
        hierarchy: The class tree, with K leaves and N nodes.
        ignore_index: Target value of the pixels that do not count.
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
        >>> lovasz(logits, target, hierarchy)  # each leaf: errors 2/3 and 1/3, steps 1 and 0
        tensor(0.6667)
    """
    logits, target = check_inputs(logits, target, hierarchy, "leaves", ignore_index=ignore_index, validate=validate)
    probability, truth, valid = _leaf_pixels(logits, target, ignore_index)
    errors = (truth - probability).abs().where(valid, -1)  # ignored pixels sort last
    order = errors.detach().argsort(dim=1, descending=True)
    truth, sorted_errors = truth.gather(1, order), errors.gather(1, order)
    size = truth.sum(dim=1, keepdim=True)
    missed = size - truth.cumsum(dim=1)
    jaccard = 1 - missed / (size + (1 - truth).cumsum(dim=1)).clamp(min=1)
    steps = torch.diff(jaccard, dim=1, prepend=torch.zeros_like(size))
    class_loss = (sorted_errors.clamp(min=0) * steps).sum(dim=1)
    return masked_mean(class_loss, (size[:, 0] > 0).to(class_loss))


def focal(
    logits: Tensor,
    target: Tensor,
    hierarchy: Hierarchy,
    *,
    ignore_index: int = IGNORE_INDEX,
    gamma: float = 2.0,
    class_weight: Tensor | None = None,
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
    logits = widen(logits)
    valid = (target != ignore_index) & (target < logits.shape[1])
    leaf = target.where(valid, 0)
    nll = F.cross_entropy(logits, leaf, reduction="none")
    missing = -torch.expm1(-nll)  # 1 - p; clamped below, because the slope of the power at 0 is infinite for gamma < 1
    weight = valid.to(nll) if class_weight is None else class_weight.to(logits)[leaf] * valid
    return masked_mean(missing.clamp(min=1e-12).pow(gamma) * nll, weight)


def _leaf_pixels(logits: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax and one-hot truth (K,P, zero where the pixel does not count), and which pixels count (P)."""
    logits = widen(logits)
    classes = logits.shape[1]
    target = target.flatten()
    valid = (target != ignore_index) & (target < classes)
    probability = logits.softmax(dim=1).transpose(0, 1).flatten(1).where(valid, 0)
    truth = target.where(valid, -1) == torch.arange(classes, device=target.device)[:, None]
    return probability, truth.to(probability.dtype), valid
