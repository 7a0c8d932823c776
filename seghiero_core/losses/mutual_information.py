"""Region mutual information."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.losses.reductions import masked_mean, widen

_EPSILON = 5e-4
"""Added to the diagonal of covariances: the variance below which a direction tells nothing."""


def region_mutual_information(
    logits: Tensor,
    target: Tensor,
    hierarchy: Hierarchy,
    *,
    ignore_index: int = 255,
    pool: int = 4,
    radius: int = 3,
) -> Tensor:
    """Region mutual information loss (Zhao et al., NeurIPS 2019, eq. 14-16), the mean over classes and images.

    `logits` B,K,H,W over leaves; `target` B,H,W of node indices. Labels and probabilities are averaged over
    `pool` x `pool` pixels, and every `radius` x `radius` window of them is a point of d = radius^2 dimensions. With Y
    the points of the labels of a class and P those of its softmax, the loss is

        (log det(cov(Y) - cov(Y, P) cov(P)^-1 cov(Y, P)^T + e I) - log det(e I)) / 2d

    which is what of the labels' structure the prediction does not tell, from 0. The paper's term lacks the constant;
    here a batch without labels gives 0. Windows with a pixel that is ignored or labelled with an inner node are left
    out. It is meant beside a loss per pixel.
    """
    logits = widen(logits)
    classes = logits.shape[1]
    valid = (target != ignore_index) & (target < classes)
    truth = F.one_hot(target.where(valid, 0), classes).movedim(3, 1).to(logits.dtype)
    probability = logits.softmax(dim=1).where(valid[:, None], 0)
    if min(target.shape[1:]) < pool * radius:
        return probability.sum() * 0
    whole = _windows(valid[:, None].to(logits.dtype), pool, radius).amin(dim=2) >= 1 - 1e-6  # B,1,n
    weight = whole.unsqueeze(2).double() / whole.sum(dim=2, keepdim=True).clamp(min=1).unsqueeze(2)  # B,1,1,n
    y = _centred(_windows(truth, pool, radius).double(), weight)
    p = _centred(_windows(probability, pool, radius).double(), weight)
    with torch.autocast(logits.device.type, enabled=False):
        unit = _EPSILON * torch.eye(radius**2, dtype=torch.float64, device=logits.device)
        across = (y * weight) @ p.mT
        told = across @ torch.linalg.solve((p * weight) @ p.mT + unit, across.mT)
        rest = (y * weight) @ y.mT - told
        log_det = torch.linalg.cholesky((rest + rest.mT) / 2 + unit).diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
    information = (log_det - unit.diagonal().log().sum() / 2) / radius**2  # B,K
    seen = whole.any(dim=2).expand_as(information).to(information)
    return masked_mean(information, seen).to(logits.dtype)


def _windows(x: Tensor, pool: int, radius: int) -> Tensor:
    """B,C,H,W to B,C,radius^2,n: every window of the averages over pool x pixels."""
    pooled = F.avg_pool2d(x, pool)
    return F.unfold(pooled, radius).unflatten(1, (x.shape[1], radius**2))


def _centred(points: Tensor, weight: Tensor) -> Tensor:
    """Points of windows that count, less their mean; others 0."""
    return (points - (points * weight).sum(dim=3, keepdim=True)) * (weight > 0)
