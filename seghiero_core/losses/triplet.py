"""The tree-triplet loss on pixel embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from seghiero_core.hierarchy.tensors import tree_tensors
from seghiero_core.hierarchy.tree import IGNORE_INDEX, Hierarchy
from seghiero_core.losses.inputs import check_inputs
from seghiero_core.losses.reductions import labels, masked_mean, widen


def tree_triplet(
    embedding: Tensor,
    target: Tensor,
    hierarchy: Hierarchy,
    *,
    ignore_index: int = IGNORE_INDEX,
    margin: float = 0.1,
    scale: float = 1.0,
    samples: int = 512,
    validate: bool = True,
) -> Tensor:
    """Compute the tree-triplet loss, the mean over randomly drawn triplets of pixels.

    An anchor a is compared with a positive p that is nearer to it in the tree than a negative n. With d the tree
    distance of two labels and f = 1 - cosine (0..2) the distance of two embeddings, the loss of a triplet is

        max(f(a, p) - f(a, n) + margin + scale * (d(a, n) - d(a, p)) / (2 * depth), 0)

    Up to `samples` anchors are drawn, rare labels as often as frequent ones, and each draws a negative and a positive
    among the others. A label and one of its ancestors make no pair, because they may be the same thing. Draws come
    from torch's global generator.

    Reference: Li et al., "Deep Hierarchical Semantic Segmentation", CVPR 2022, eq. 8-10.

    Args:
        embedding: B,D,h,w of unit length along D, of any size h,w.
        target: B,H,W of node indices or `ignore_index`, resized to h,w by nearest neighbor.
        hierarchy: The class tree, with N nodes.
        ignore_index: Target value of the pixels that do not count.
        margin: Least difference of the two distances, at least 0.
        scale: How much the difference in tree distance adds to the margin, at least 0.
        samples: Most anchors in a batch, at least 1.
        validate: Whether to check the target's values; on a GPU this synchronizes.

    Returns:
        Scalar loss, at least 0; 0 if no triplet can be drawn.

    Raises:
        ValueError: When a shape or a target value is wrong.

    Example:
        >>> tree = {"vehicle": ["car", "bus"], "sky": None}
        >>> hierarchy = Hierarchy.from_config({"labels": ["car", "bus", "sky"], "tree": tree})
        >>> embedding = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]).T.reshape(1, 2, 1, 3)
        >>> target = torch.tensor([[[0, 0, 2]]])  # two equal cars, and a sky at right angles to them
        >>> tree_triplet(embedding, target, hierarchy)  # 0 - 1 + 0.1 + 3 / 4 is below 0
        tensor(0.)
        >>> tree_triplet(embedding, target, hierarchy, margin=0.5)
        tensor(0.2500)
    """
    embedding, target = check_inputs(
        embedding, target, hierarchy, "embedding", ignore_index=ignore_index, validate=validate
    )
    embedding, tree = widen(embedding), tree_tensors(hierarchy, embedding.device)
    if target.numel() == 0:
        return embedding.sum() * 0
    label = labels(_resize(target, embedding.shape[2:]), tree, ignore_index).flatten()
    # The first arrivals of an exponential race are a weighted sample without replacement (Efraimidis & Spirakis 2006).
    frequency = label.bincount(minlength=len(tree.depths))
    arrival = torch.empty(label.shape, device=label.device).exponential_() * frequency[label]
    arrival = arrival.where(label < len(hierarchy), torch.inf)
    chosen = arrival.topk(min(samples, len(label)), largest=False).indices
    label = label[chosen]
    known = label < len(hierarchy)
    node = label.where(known, 0)
    distance = tree.distance[node[:, None], node].long()  # S,S
    same = torch.eye(len(node), dtype=torch.bool, device=node.device)
    related = (tree.covers | tree.covers.T)[node[:, None], node] & (node[:, None] != node)
    pairs = known[:, None] & known & ~related & ~same
    negative = _draw(pairs & (distance > 0))
    to_negative = distance.gather(1, negative[:, None])
    nearer = pairs & (distance < to_negative)
    positive = _draw(nearer)
    vectors = embedding.movedim(1, 3).flatten(0, 2)[chosen]
    cosine = (vectors[:, None] * vectors[torch.stack([positive, negative], dim=1)]).sum(dim=2)
    to_positive = distance.gather(1, positive[:, None])
    wanted = margin + scale * (to_negative - to_positive)[:, 0].to(cosine) / (2 * len(hierarchy.levels))
    drawn = nearer.any(dim=1) & pairs.logical_and(distance > 0).any(dim=1)
    return masked_mean((cosine[:, 1] - cosine[:, 0] + wanted).clamp(min=0), drawn.to(cosine))


def _resize(target: Tensor, size: Sequence[int]) -> Tensor:
    """B,H,W to B,h,w: the pixel at the center of each cell. In integers: MPS has no float64, which any label fits."""
    rows, columns = (
        (2 * torch.arange(cells, device=target.device) + 1) * side // (2 * cells)
        for side, cells in zip(target.shape[1:], size, strict=True)
    )
    return target[:, rows[:, None], columns]


def _draw(allowed: Tensor) -> Tensor:
    """The column of a random true element in every row of S,S; any column where a row has none."""
    return torch.rand(allowed.shape, device=allowed.device).where(allowed, -1).argmax(dim=1)
