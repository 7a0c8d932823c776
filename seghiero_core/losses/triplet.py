"""Triplets of pixels, pulled together and pushed apart by tree distance."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seghiero_core.hierarchy.tensors import tree_tensors
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.losses.reductions import labels, masked_mean, widen


def tree_triplet(
    embedding: Tensor,
    target: Tensor,
    hierarchy: Hierarchy,
    *,
    ignore_index: int = 255,
    margin: float = 0.1,
    scale: float = 1.0,
    samples: int = 512,
) -> Tensor:
    """Tree-triplet loss (Li et al., CVPR 2022, eq. 8-10), the mean over sampled triplets.

    `embedding` B,D,h,w of unit length along D; `target` B,H,W of node indices, brought to h,w by nearest neighbour.
    With d the tree distance of labels, f the distance 1 - cosine (0..2) of embeddings, and the anchor's positive p
    nearer to it in the tree than its negative n,

        max(f(a, p) - f(a, n) + margin + scale * (d(a, n) - d(a, p)) / (2 * depth), 0)

    Up to `samples` anchors are drawn, rare labels as likely as frequent ones; each draws a negative and a positive
    from the others at random. Labels of which one stands above the other may be the same thing and make no pair. A
    batch without a triplet gives 0. Draws come from torch's own generator.
    """
    embedding, tree = widen(embedding), tree_tensors(hierarchy, embedding.device)
    small = F.interpolate(target[:, None].double(), size=embedding.shape[2:], mode="nearest-exact")[:, 0].long()
    label = labels(small, tree, ignore_index).flatten()
    # An exponential race: the first arrivals are a sample without replacement, by rate (Efraimidis & Spirakis 2006).
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


def _draw(allowed: Tensor) -> Tensor:
    """For every row of S,S the column of a random true element; any column where there is none."""
    return torch.rand(allowed.shape, device=allowed.device).where(allowed, -1).argmax(dim=1)
