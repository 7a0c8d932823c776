"""Losses over the leaves that look at classes as regions or at hard pixels: Dice, Lovász-softmax, focal.

All read a softmax over leaves. Pixels labelled with an inner node have no leaf and do not count.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.losses.reductions import masked_mean, widen


def dice(
    logits: Tensor, target: Tensor, hierarchy: Hierarchy, *, ignore_index: int = 255, smooth: float = 1.0
) -> Tensor:
    """Soft Dice loss (Milletari et al., V-Net, 2016), the mean over classes that the batch's labels hold.

    `logits` B,K,H,W over leaves; `target` B,H,W of node indices. Sums go over the pixels of the whole batch, and
    `smooth` (in pixels) is added to both sides of the fraction: 1 - (2 sum(p y) + s) / (sum(p) + sum(y) + s).
    """
    logits = widen(logits)
    classes = logits.shape[1]
    leaf = target.where((target != ignore_index) & (target < classes), classes)
    overlap, total = _Overlaps.apply(logits, leaf)
    size = leaf.flatten().bincount(minlength=classes + 1)[:classes].to(total)
    score = (2 * overlap + smooth) / (total + size + smooth).clamp(min=1e-12)
    return masked_mean(1 - score, (size > 0).to(score))


class _Overlaps(torch.autograd.Function):
    """Two sums (K) of a softmax p over leaves: of p at the pixels of each leaf, and of p at all pixels that count.

    `logits` B,K,H,W; `leaf` B,H,W is K where a pixel doesn't count. With the sums' gradients a and t, the gradient by
    p is t + a at the label and t elsewhere, and by the logits p times (that - its mean under p).
    """

    @staticmethod
    def forward(ctx, logits: Tensor, leaf: Tensor) -> tuple[Tensor, Tensor]:
        classes = logits.shape[1]
        leaf = leaf.flatten(1)
        p = logits.flatten(2).softmax(dim=1)
        if (leaf == classes).any():
            p *= (leaf < classes)[:, None]
        at_label = p.gather(1, leaf.clamp(max=classes - 1)[:, None])  # 0 where a pixel doesn't count
        overlap = p.new_zeros(classes + 1).scatter_add_(0, leaf.flatten(), at_label.flatten())
        ctx.save_for_backward(p, leaf, at_label)
        ctx.shape = logits.shape
        return overlap[:classes], p.sum(dim=(0, 2))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, of_overlap: Tensor, of_total: Tensor):
        p, leaf, at_label = ctx.saved_tensors
        label = leaf.clamp(max=p.shape[1] - 1)[:, None]
        at_label = at_label * of_overlap.gather(0, label.flatten()).view(label.shape)
        mean = torch.matmul(of_total, p)[:, None] + at_label
        grad = (p * of_total[:, None]).scatter_add_(1, label, at_label)
        return grad.addcmul_(p, mean, value=-1).view(ctx.shape), None


def lovasz(logits: Tensor, target: Tensor, hierarchy: Hierarchy, *, ignore_index: int = 255) -> Tensor:
    """Lovász-softmax loss (Berman et al., CVPR 2018, eq. 9-11), the mean over classes that the batch's labels hold.

    `logits` B,K,H,W over leaves; `target` B,H,W of node indices. The surrogate of the Jaccard loss of each class over
    all pixels of the batch: errors, greatest first, times the steps in which the Jaccard loss grows with them.
    """
    probability, truth, valid = _leaf_pixels(logits, target, ignore_index)
    errors = (truth - probability).abs().where(valid, -1)  # ignored pixels sort behind all others
    order = errors.detach().argsort(dim=1, descending=True)
    truth, sorted_errors = truth.gather(1, order), errors.gather(1, order)
    size = truth.sum(dim=1, keepdim=True)
    missed = size - truth.cumsum(dim=1)
    jaccard = 1 - missed / (size + (1 - truth).cumsum(dim=1)).clamp(min=1)
    steps = torch.diff(jaccard, dim=1, prepend=torch.zeros_like(size))
    of_class = (sorted_errors.clamp(min=0) * steps).sum(dim=1)
    return masked_mean(of_class, (size[:, 0] > 0).to(of_class))


def focal(
    logits: Tensor,
    target: Tensor,
    hierarchy: Hierarchy,
    *,
    ignore_index: int = 255,
    gamma: float = 2.0,
    class_weight: Tensor | None = None,
) -> Tensor:
    """Softmax focal loss (Lin et al., ICCV 2017): mean of -(1 - p)^gamma log p over leaf-labelled pixels.

    `logits` B,K,H,W over leaves; `target` B,H,W of node indices. `class_weight` (K) makes it the weighted mean.
    """
    logits = widen(logits)
    valid = (target != ignore_index) & (target < logits.shape[1])
    leaf = target.where(valid, 0)
    nll = F.cross_entropy(logits, leaf, reduction="none")
    missing = -torch.expm1(-nll)  # 1 - p; clamped, as the power's slope at 0 is infinite for gamma below 1
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
