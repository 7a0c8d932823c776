"""The tree-triplet loss on pixel embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from seghiero_core.hierarchy.tensors import TreeTensors, tree_tensors
from seghiero_core.hierarchy.tree import IGNORE_INDEX, Hierarchy
from seghiero_core.losses.inputs import check_inputs
from seghiero_core.losses.reductions import images_with, labels, masked_mean, whole_step, widen


def tree_triplet(
    embedding: Tensor,
    target: Tensor,
    hierarchy: Hierarchy,
    *,
    ignore_index: int = IGNORE_INDEX,
    margin: float = 0.1,
    scale: float = 1.0,
    samples: int = 512,
    counts: Tensor | None = None,
    validate: bool = True,
) -> Tensor:
    """Compute the tree-triplet loss, the mean over the images of the mean over triplets of the image's pixels.

    An anchor a is compared with a positive p that is nearer to it in the tree than a negative n. With d the tree
    distance of two labels and f = 1 - cosine (0..2) the distance of two embeddings, the loss of a triplet is

        max(f(a, p) - f(a, n) + margin + scale * (d(a, n) - d(a, p)) / (2 * depth), 0)

    Up to `samples` anchors of an image are drawn, rare labels as often as frequent ones, and each draws a negative and
    a positive among the others. A label and one of its ancestors make no pair, because they may be the same thing. What
    is drawn follows from where the image's labels meet, so that it is the same in any batch; a new crop draws anew. An
    image without a labeled pixel does not count, and one without a triplet counts 0.

    Reference: Li et al., "Deep Hierarchical Semantic Segmentation", CVPR 2022, eq. 8-10.

    Args:
        embedding: B,D,h,w of unit length along D, of any size h,w.
        target: B,H,W of node indices or `ignore_index`, resized to h,w by nearest neighbor.
        hierarchy: The class tree, with N nodes.
        ignore_index: Target value of the pixels that do not count.
        margin: Least difference of the two distances, at least 0.
        scale: How much the difference in tree distance adds to the margin, at least 0.
        samples: Most anchors in an image, at least 1.
        counts: I,N+S+1 pixels of each label in each image of the whole step (see `label_counts`); the loss is then this
            batch's share of the step's. Default: this batch is the whole step.
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
    label = labels(target, tree, ignore_index)
    images = images_with(whole_step(counts, label, hierarchy)[:, :-1])
    label = _resize(label, embedding.shape[2:]).flatten(1)  # B,P
    for_anchor, for_negative, for_positive = _random(label)
    # The first arrivals of an exponential race are a weighted sample without replacement (Efraimidis & Spirakis 2006).
    frequency = whole_step(None, label, hierarchy).gather(1, label)
    arrival = -((for_anchor + 0.5) / 2**32).log() * frequency
    arrival = arrival.where(label < len(hierarchy), torch.inf)
    chosen = arrival.topk(min(samples, label.shape[1]), largest=False).indices  # B,S
    label = label.gather(1, chosen)
    distance = _pair_distance(tree)[label[:, :, None], label[:, None]]  # B,S,S
    is_negative = distance > 0
    negative = _pick(is_negative, for_negative.gather(1, chosen))
    to_negative = distance.gather(2, negative)
    nearer = (distance >= 0) & (distance < to_negative)
    nearer.diagonal(dim1=1, dim2=2).fill_(False)
    positive = _pick(nearer, for_positive.gather(1, chosen))
    to_positive = distance.gather(2, positive)
    vectors = embedding.flatten(2).mT  # B,P,D
    image = torch.arange(len(vectors), device=vectors.device)[:, None]
    others = vectors[image[:, :, None], chosen[image[:, :, None], torch.cat([positive, negative], dim=2)]]
    cosine = (vectors[image, chosen][:, :, None] * others).sum(dim=3)  # B,S,2
    wanted = margin + scale * (to_negative - to_positive)[:, :, 0].to(cosine) / (2 * len(hierarchy.levels))
    drawn = is_negative.any(dim=2) & nearer.any(dim=2)
    return masked_mean((cosine[:, :, 1] - cosine[:, :, 0] + wanted).clamp(min=0), drawn.to(cosine)).sum() / images


def _resize(target: Tensor, size: Sequence[int]) -> Tensor:
    """B,H,W to B,h,w: the pixel at the center of each cell. In integers: MPS has no float64, which any label fits."""
    rows, columns = (
        (2 * torch.arange(cells, device=target.device) + 1) * side // (2 * cells)
        for side, cells in zip(target.shape[1:], size, strict=True)
    )
    return target[:, rows[:, None], columns]


def _pair_distance(tree: TreeTensors) -> Tensor:
    """N+1,N+1: the tree distance of two labels; -1 where one is an ancestor of the other, or ignored."""
    related = (tree.covers | tree.covers.T).fill_diagonal_(False)
    return tree.distance.masked_fill(F.pad(related, (0, 1, 0, 1), value=True), -1)


def _random(label: Tensor) -> Tensor:
    """B,P to 3,B,P integers below 2^32, which follow from where the labels of an image change."""
    pixels = label.shape[1]
    place = torch.arange(3 * pixels, device=label.device)
    key = (_scramble(place[1:pixels]) * (label[:, 1:] != label[:, :-1])).sum(dim=1, keepdim=True)
    return _scramble(_scramble(key) + place).unflatten(1, (3, pixels)).transpose(0, 1)


def _scramble(x: Tensor) -> Tensor:
    """Integers of any shape to ones below 2^32 that look random: Mueller's hash, in which int64 can't overflow."""
    for _ in range(2):
        x = x & 0xFFFFFFFF
        x = ((x >> 16) ^ x) * 0x45D9F3B
    x = x & 0xFFFFFFFF
    return (x >> 16) ^ x


def _pick(allowed: Tensor, random: Tensor) -> Tensor:
    """B,S,1: the column of a random true element in every row of B,S,S; the last where a row has none."""
    rank = allowed.cumsum(dim=2, dtype=torch.int32)
    wanted = random[:, :, None] * rank[:, :, -1:] >> 32
    return (rank <= wanted).sum(dim=2, keepdim=True).clamp(max=allowed.shape[2] - 1)
