"""Region mutual information: the structure of the labels that the prediction explains."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seghiero_core.hierarchy.tensors import tree_tensors
from seghiero_core.hierarchy.tree import IGNORE_INDEX, Hierarchy
from seghiero_core.losses.inputs import check_inputs
from seghiero_core.losses.reductions import images_with, labels, whole_step, widen

_EPSILON = 5e-4
"""Added to the diagonal of covariances; a direction with less variance than this carries no information."""


def region_mutual_information(
    logits: Tensor,
    target: Tensor,
    hierarchy: Hierarchy,
    *,
    ignore_index: int = IGNORE_INDEX,
    pool: int = 4,
    radius: int = 3,
    counts: Tensor | None = None,
    validate: bool = True,
) -> Tensor:
    """Compute the region mutual information loss, the mean over the images of the mean over the leaves.

    Labels and softmax probabilities are averaged over `pool` x `pool` px, and every `radius` x `radius` window of
    these averages is a point of d = radius^2 dimensions. With Y the points of a leaf's labels and P those of its
    probabilities, the loss of that leaf is

        (log det(cov(Y) - cov(Y, P) cov(P)^-1 cov(Y, P)^T + e I) - log det(e I)) / 2d

    It measures the structure of the labels that the prediction does not explain. The paper leaves out the constant;
    with it an image without a whole window gives 0. Windows with a pixel that is ignored or labeled with an inner node
    do not count, nor does an image without a pixel labeled with a leaf. Use it together with a loss per pixel.

    Reference: Zhao et al., "Region Mutual Information Loss for Semantic Segmentation", NeurIPS 2019, eq. 14-16.

    Args:
        logits: B,K,H,W over leaves, or B,N,H,W over nodes, of which the first K channels are read.
        target: B,H,W of node indices or `ignore_index`.
        hierarchy: The class tree, with K leaves and N nodes.
        ignore_index: Target value of the pixels that do not count.
        pool: Side of the squares that are averaged, px.
        radius: Side of a window, in averaged squares.
        counts: I,N+S+1 pixels of each label in each image of the whole step (see `label_counts`); the loss is then this
            batch's share of the step's. Default: this batch is the whole step.
        validate: Whether to check the target's values; on a GPU this synchronizes.

    Returns:
        Scalar loss, at least 0; 0 where no whole window counts.

    Raises:
        ValueError: When a shape, the number of channels or a target value is wrong.

    Example:
        >>> tree = {"vehicle": ["car", "bus"], "sky": None}
        >>> hierarchy = Hierarchy.from_config({"labels": ["car", "bus", "sky"], "tree": tree})
        >>> target = torch.arange(144).view(1, 12, 12) % 5 % 3
        >>> right = F.one_hot(target, 3).movedim(3, 1) * 9.0
        >>> options = {"pool": 1, "radius": 2}
        >>> loss = region_mutual_information(right, target, hierarchy, **options)
        >>> bool(loss < region_mutual_information(-right, target, hierarchy, **options))
        True
    """
    logits, target = check_inputs(logits, target, hierarchy, "leaves", ignore_index=ignore_index, validate=validate)
    logits, label = widen(logits), labels(target, tree_tensors(hierarchy, logits.device), ignore_index)
    classes = logits.shape[1]
    valid = label < classes
    truth = F.one_hot(label.where(valid, 0), classes).movedim(3, 1).to(logits.dtype)
    probability = logits.softmax(dim=1).where(valid[:, None], 0)
    if min(target.shape[1:]) < pool * radius:
        return probability.sum() * 0
    exact = torch.device("cpu") if logits.device.type == "mps" else logits.device  # has float64
    whole = (_windows(valid[:, None].to(logits.dtype), pool, radius).amin(dim=2) >= 1 - 1e-6).to(exact)  # B,1,n
    weight = whole.unsqueeze(2).double() / whole.sum(dim=2, keepdim=True).clamp(min=1).unsqueeze(2)  # B,1,1,n
    y = _centred(_windows(truth, pool, radius).to(exact).double(), weight)
    p = _centred(_windows(probability, pool, radius).to(exact).double(), weight)
    unit = _EPSILON * torch.eye(radius**2, dtype=torch.float64, device=exact)  # autocast leaves float64 as it is
    across = (y * weight) @ p.mT
    solution, no_solution = torch.linalg.solve_ex((p * weight) @ p.mT + unit, across.mT)
    unexplained = (y * weight) @ y.mT - across @ solution
    triangle, not_positive = torch.linalg.cholesky_ex((unexplained + unexplained.mT) / 2 + unit)
    log_det = triangle.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
    # Of probabilities that are not finite. To raise an error would wait for the GPU, and end a training.
    log_det = log_det.where((no_solution == 0) & (not_positive == 0), torch.nan)
    information = (log_det - unit.diagonal().log().sum() / 2) / radius**2  # B,K
    total = information.mean(dim=1).where(whole.any(dim=2)[:, 0], 0).sum().to(logits.device, logits.dtype)
    return total / images_with(whole_step(counts, label, hierarchy)[:, :classes])


def _windows(x: Tensor, pool: int, radius: int) -> Tensor:
    """B,C,H,W to B,C,radius^2,n: every window of the averages over pool x pool px."""
    pooled = F.avg_pool2d(x, pool)
    return F.unfold(pooled, radius).unflatten(1, (x.shape[1], radius**2))


def _centred(points: Tensor, weight: Tensor) -> Tensor:
    """The points of the windows that count, minus their mean; 0 for the others."""
    return (points - (points * weight).sum(dim=3, keepdim=True)) * (weight > 0)
