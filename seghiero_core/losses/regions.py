"""Losses over the leaves that look at classes as regions or at hard pixels: Dice, Lovász-softmax, focal.

All read a softmax over leaves. Pixels labelled with an inner node have no leaf and do not count.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seghiero_core.hierarchy import Hierarchy
from seghiero_core.losses.tree import masked_mean, widen


def dice(
    logits: Tensor, target: Tensor, hierarchy: Hierarchy, *, ignore_index: int = 255, smooth: float = 1.0
) -> Tensor:
    """Soft Dice loss (Milletari et al., V-Net, 2016), the mean over classes that the batch's labels hold.

    `logits` B,K,H,W over leaves; `target` B,H,W of node indices. Sums go over the pixels of the whole batch, and
    `smooth` (in pixels) is added to both sides of the fraction: 1 - (2 sum(p y) + s) / (sum(p) + sum(y) + s).
    """
    probability, truth, _ = _leaf_pixels(logits, target, ignore_index)
    size = truth.sum(dim=1)
    overlap = (probability * truth).sum(dim=1)
    score = (2 * overlap + smooth) / (probability.sum(dim=1) + size + smooth).clamp(min=1e-12)
    return masked_mean(1 - score, (size > 0).to(score))


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
