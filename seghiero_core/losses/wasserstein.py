"""Wasserstein distance between the predicted distribution and the label, along the edges of the tree."""

from __future__ import annotations

import functools

from torch import Tensor

from seghiero_core.hierarchy.tensors import tree_tensors
from seghiero_core.hierarchy.tree import IGNORE_INDEX, Hierarchy
from seghiero_core.losses.fused import sum_over_pixels
from seghiero_core.losses.inputs import check_inputs
from seghiero_core.losses.reductions import label_weights, labels, look_up, total_weight, whole_step, widen


def tree_wasserstein(
    logits: Tensor,
    target: Tensor,
    hierarchy: Hierarchy,
    *,
    ignore_index: int = IGNORE_INDEX,
    class_weight: Tensor | None = None,
    counts: Tensor | None = None,
    validate: bool = True,
) -> Tensor:
    """Compute how far the predicted distribution over the leaves is from the label in the tree.

    With p the softmax over the leaves, d(k, y) the number of edges between leaf k and the label y, and D the largest
    distance between two leaves, the loss is the mean over the labeled pixels of

        sum_k p_k d(k, y) / D

    For a leaf y this is the 1-Wasserstein distance between p and the one-hot label, with the path length in the tree as
    ground distance. For an inner node or a set, d is the distance to the nearest of its leaves, and the loss is the
    Wasserstein distance to the nearest distribution over them. It is 0 where all probability is under the label.

    Its gradient vanishes at a confident mistake, so add it to a cross-entropy, as the preset `wasserstein` does.

    Reference: Wang et al., "Tree-based Semantic Losses", 2025, arXiv 2506.21150, who add it to a cross-entropy over the
    leaves. The division by D, inner nodes and sets are ours.

    Args:
        logits: B,K,H,W over leaves, or B,N,H,W over nodes, of which the first K channels are read.
        target: B,H,W of labels (node indices, or N + i for set i) or `ignore_index`.
        hierarchy: The class tree, with K leaves, N nodes and S sets.
        ignore_index: Target value of the pixels that do not count.
        class_weight: (K) weights of the leaves. The mean is then weighted; an inner node or a set weighs the mean of
            its leaves.
        counts: I,N+S+1 pixels of each label in each image of the whole step (see `label_counts`); the loss is then this
            batch's share of the step's. Default: this batch is the whole step.
        validate: Whether to check the target's values; on a GPU this synchronizes.

    Returns:
        Scalar loss, 0 to 1; 0 where no pixel counts.

    Raises:
        ValueError: When a shape, the number of channels or a target value is wrong.

    Example:
        >>> import torch
        >>> tree = {"vehicle": ["car", "bus"], "sky": None}
        >>> hierarchy = Hierarchy.from_config({"labels": ["car", "bus", "sky"], "tree": tree})
        >>> logits = torch.zeros(1, 3, 1, 2)
        >>> target = torch.tensor([[[0, IGNORE_INDEX]]])
        >>> tree_wasserstein(logits, target, hierarchy)  # (0 + 2 + 3) / 3 edges of at most 3
        tensor(0.5556)
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
    weight = label_weights(class_weight, tree, widen(logits[:0]))
    total = total_weight(weight, whole_step(counts, label, hierarchy, sets=True))
    share = weight / total / max(tree.farthest, 1)
    return sum_over_pixels(logits, label, functools.partial(_piece, distance=tree.label_distance, share=share))


def _piece(
    z: Tensor, label: Tensor, with_grad: bool, *, distance: Tensor, share: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Sum over pixels of share * mean of d under p = softmax(z), and its gradient share * p (d - mean)."""
    p = z.softmax(dim=1)
    paid = look_up(distance, label).transpose(0, 1).to(p).mul_(p)  # b,K,p
    mean = paid.sum(dim=1, keepdim=True)
    shares = look_up(share[None], label).transpose(0, 1)  # b,1,p
    return (mean * shares).sum(), paid.addcmul_(p, mean, value=-1).mul_(shares) if with_grad else None
