"""Cross-entropies: on the leaves, at every level, and among siblings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from seghiero_core.hierarchy.tensors import tree_tensors
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.losses.reductions import group_logsumexp, labels, level_shares, masked_mean, node_weights, widen


def leaf_cross_entropy(
    logits: Tensor,
    target: Tensor,
    hierarchy: Hierarchy,
    *,
    ignore_index: int = 255,
    class_weight: Tensor | None = None,
) -> Tensor:
    """Softmax cross-entropy over the leaves, the mean over pixels that are labelled with a leaf.

    `logits` B,K,H,W over leaves; `target` B,H,W of node indices. Pixels labelled with an inner node have no leaf and
    do not count. With `class_weight` (K) it is the weighted mean, as in `torch.nn.functional.cross_entropy`.
    """
    logits = widen(logits)
    valid = (target != ignore_index) & (target < logits.shape[1])
    weight = None if class_weight is None else class_weight.to(logits)
    total = F.cross_entropy(logits, target.where(valid, -1), weight, ignore_index=-1, reduction="sum")
    count = valid.sum() if weight is None else weight[target.where(valid, 0)].where(valid, 0).sum()
    return total / torch.where(count > 0, count, 1)


def level_cross_entropy(
    logits: Tensor,
    target: Tensor,
    hierarchy: Hierarchy,
    *,
    ignore_index: int = 255,
    level_weights: Sequence[float] | float | None = None,
    class_weight: Tensor | None = None,
) -> Tensor:
    """One softmax cross-entropy per level, over the logits of the level's own nodes, averaged over levels.

    `logits` B,N,H,W over nodes; `target` B,H,W of node indices. A leaf that stands for itself at several levels uses
    its one logit in each. Labels, `level_weights` and `class_weight` count as in `marginal_cross_entropy`.
    """
    logits, tree = widen(logits), tree_tensors(hierarchy, logits.device)
    label = labels(target, tree, ignore_index)
    shares = level_shares(label, hierarchy, level_weights, class_weight, logits)
    loss = logits.new_zeros(())
    for nodes, classes, share in zip(tree.level_nodes, tree.class_of, shares, strict=True):
        of_level = logits.index_select(1, nodes)
        loss = loss + (F.cross_entropy(of_level, classes[label], reduction="none") * share[label]).sum()
    return loss


def conditional_cross_entropy(
    logits: Tensor,
    target: Tensor,
    hierarchy: Hierarchy,
    *,
    ignore_index: int = 255,
    class_weight: Tensor | None = None,
) -> Tensor:
    """Softmax among siblings at every branch: minus the log of the path's probability, the mean over valid pixels.

    Redmon & Farhadi, "YOLO9000" (CVPR 2017, section 4). `logits` B,N,H,W over nodes; `target` B,H,W of node indices.
    The probability of a node is the product of softmax(siblings) from the root's child down to it, so one labelled
    with an inner node asks nothing of its children. `class_weight` (K) weighs a pixel by its label's class.
    """
    logits, tree = widen(logits), tree_tensors(hierarchy, logits.device)
    label = labels(target, tree, ignore_index)
    log_sums = group_logsumexp(logits, tree.family, len(tree.family_sizes))
    chain = tree.path[:, label].transpose(0, 1)  # B,D,H,W, the label repeated past its depth
    log_p = logits.gather(1, chain) - log_sums.gather(1, tree.family[chain])
    on_path = torch.arange(chain.shape[1], device=logits.device)[:, None, None] < tree.depths[label][:, None]
    nll = -log_p.where(on_path, 0).sum(dim=1)
    weight = torch.ones(len(hierarchy)) if class_weight is None else node_weights(class_weight, tree)
    return masked_mean(nll, F.pad(weight.to(logits), (0, 1))[label])
