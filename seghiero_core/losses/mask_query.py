"""The loss of queries that each predict a class and a mask: match them with the masks of an image, then compare."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from seghiero_core.hierarchy.tensors import tree_tensors
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.losses.reductions import whole_step

CELL = 4
"""Height and width (px) of a cell of the masks, which are at C1's size."""


def mask_query_losses(
    class_logits: Tensor,
    mask_logits: Tensor,
    target: Tensor,
    hierarchy: Hierarchy,
    *,
    weights: Mapping[str, float],
    no_object_weight: float = 0.1,
    counts: Tensor | None = None,
) -> dict[str, Tensor]:
    """Match the queries of every prediction with the classes in each image, and compute three losses of the pairs.

    An image has one mask for each leaf with a pixel in it. Where the queries also classify into inner nodes (the loss
    over the logits needs them), it has one for each of these, too. The pairs have the least sum of

        weights["class"] * -p(class) + weights["mask"] * mask + weights["dice"] * dice

    With x the mask logits of a query, y the mask of its class and sums over the pixels labeled with a leaf, the terms
    of a pair are

        class  -log p(class), with the softmax p over the classes and "no object"
        mask   the mean of the binary cross-entropy of sigmoid(x) and y
        dice   1 - (2 sum(sigmoid(x) y) + 1) / (sum(sigmoid(x)) + sum(y) + 1), in cells

    "mask" and "dice" are means over the masks of the step. "class" is a weighted mean over all queries, in which one
    without a mask should predict "no object" and weighs `no_object_weight`, times the share of its image's pixels that
    are labeled with a leaf: it may be right about a class in the others. All are summed over the predictions.

    A cell of the masks stands for its 4 x 4 pixels. No points are sampled. Where all pixels have a leaf and a cell's
    pixels have the same, this equals the loss of Mask2Former with the cells as points.

    Reference: Cheng et al. 2022, "Masked-attention Mask Transformer for Universal Image Segmentation", section 3.3;
    Kuhn 1955, "The Hungarian method for the assignment problem".

    Args:
        class_logits: B,P,Q,C+1 of P predictions and Q queries, where C is the number of leaves or of nodes; the last
            class is "no object".
        mask_logits: B,P,Q,h,w at stride 4; it may go beyond the target at the bottom and right.
        target: B,H,W of labels; a pixel without a leaf doesn't count.
        hierarchy: The class tree, with K leaves and N nodes.
        weights: The weights of "class", "mask" and "dice" in the matching.
        no_object_weight: Weight of queries without a mask.
        counts: I,N+S+1 pixels of each label in each image of the whole step (see `label_counts`); the losses are then
            this batch's share of the step's. Default: this batch is the whole step.

    Returns:
        The scalars "class", "mask" and "dice", without their weights; 0 where no pixel counts.
    """
    leaves, channels = len(hierarchy.leaves), class_logits.shape[3] - 1
    members = tree_tensors(hierarchy, target.device).label_leaves[:channels].float()  # C,K
    label = target.long().where((target >= 0) & (target < leaves), len(hierarchy))
    here, step = (whole_step(given, label, hierarchy) for given in (None, counts))

    # ── every query with every class: B,P,Q,C ────────────────────────────────────────────────────────────────────
    x = mask_logits.float().flatten(3)
    leaf_masks = _leaf_masks(label.clamp(max=leaves), leaves, mask_logits.shape[3:])  # B,K,h*w
    y, valid = members @ leaf_masks, leaf_masks.sum(dim=1)
    y, valid = y.mT[:, None], valid[:, None, :, None]  # B,1,h*w,C and B,1,h*w,1
    size, known = y.sum(dim=2, keepdim=True), valid.sum(dim=2, keepdim=True)
    mask = (F.softplus(x) @ valid - x @ y) / known.clamp(min=1 / CELL**2)
    p = x.sigmoid()
    dice = 1 - (2 * (p @ y) + 1) / (p @ valid + size + 1)
    log_p = class_logits.float().log_softmax(dim=3)
    cost = weights["mask"] * mask + weights["dice"] * dice - weights["class"] * log_p[..., :-1].exp()

    # ── the pairs ────────────────────────────────────────────────────────────────────────────────────────────────
    assigned = _assign(cost.detach(), size[:, 0, 0] > 0)  # B,P,Q; C for "no object"
    paired = assigned < channels
    masks, queries = _masks_per_image(step, members), x.shape[2]
    own = assigned.clamp(max=channels - 1)[..., None]
    found = {
        name: (values.gather(3, own)[..., 0] * paired).sum() / masks.sum().clamp(min=1)
        for name, values in (("mask", mask), ("dice", dice))
    }
    unpaired = no_object_weight * _known_share(here, leaves)
    weight = torch.where(paired, 1.0, unpaired[:, None, None])
    pairs = masks.clamp(max=queries)
    total = (pairs + (queries - pairs) * no_object_weight * _known_share(step, leaves)).sum()
    cross_entropy = -log_p.gather(3, assigned[..., None])[..., 0]
    return {"class": (weight * cross_entropy).sum() / torch.where(total > 0, total, 1), **found}


def _leaf_masks(label: Tensor, leaves: int, size: tuple[int, int]) -> Tensor:
    """B,K,h*w float32: the share of each cell's pixels that are labeled with a leaf; B,H,W `label` is K for none."""
    rows, columns = (
        torch.arange(side, device=label.device).div(CELL, rounding_mode="floor").clamp(max=cells - 1)
        for side, cells in zip(label.shape[1:], size, strict=True)
    )
    cells = size[0] * size[1]
    index = (label * cells + rows[:, None] * size[1] + columns).flatten(1)
    pixels = torch.zeros(len(label), (leaves + 1) * cells, device=label.device)
    pixels.scatter_add_(1, index, pixels.new_ones(()).expand_as(index))  # whole numbers: exact in any order
    return pixels.unflatten(1, (leaves + 1, cells))[:, :leaves] / CELL**2


def _assign(cost: Tensor, present: Tensor) -> Tensor:
    """B,P,Q: the class that each query is paired with, or C, at the least sum of `cost` B,P,Q,C; `present` B,C."""
    largest = torch.finfo(cost.dtype).max
    matrices = cost.nan_to_num(nan=largest, posinf=largest, neginf=-largest).cpu().numpy()
    assigned = np.full(matrices.shape[:3], matrices.shape[3])
    for image, found in enumerate(present.cpu().numpy()):
        classes = np.flatnonzero(found)
        for prediction, matrix in enumerate(matrices[image]):
            queries, chosen = linear_sum_assignment(matrix[:, classes])
            assigned[image, prediction, queries] = classes[chosen]
    return torch.from_numpy(assigned).to(cost.device)


def _masks_per_image(counts: Tensor, members: Tensor) -> Tensor:
    """(I) float32: the masks in each image, from I,N+1 `counts`."""
    present = (counts[:, : members.shape[1]] > 0).float()
    return (present @ members.T > 0).float().sum(dim=1)


def _known_share(counts: Tensor, leaves: int) -> Tensor:
    """(I) float32: the share of each image's pixels that are labeled with a leaf."""
    return counts[:, :leaves].sum(dim=1) / counts.sum(dim=1).clamp(min=1)
