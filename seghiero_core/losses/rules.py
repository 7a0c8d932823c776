"""The rules of a tree as a loss."""

from __future__ import annotations

import torch
from torch import Tensor

from seghiero_core.hierarchy.tensors import tree_tensors
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.losses.reductions import group_max, widen


def tree_rules(
    logits: Tensor, target: Tensor, hierarchy: Hierarchy, *, ignore_index: int = 255, q: float = 5.0
) -> Tensor:
    """How far the scores break the rules of the tree (Li et al., LogicSeg, ICCV 2023, section 3.2).

    `logits` B,N,H,W over nodes; `target` B,H,W, read only for which pixels are ignored. With s = sigmoid(logits), a
    node v, its parent u, its children c and its M siblings a, the degrees to which a pixel breaks the rules are

        composition    v implies u                  s_v - s_v s_u
        decomposition  u implies one of its c       s_u - s_u max_c s_c
        exclusion      v implies none of its a      s_v mean_a s_a

    Each is gathered over the pixels by (mean x^q)^(1/q), which lets the worst count most, and averaged over the nodes
    it speaks of; the loss is the sum of the three. A rule that the tree has no node for counts 0. It needs a loss
    beside it that says what the pixels are.
    """
    tree = tree_tensors(hierarchy, logits.device)
    valid = target != ignore_index
    score = widen(logits).sigmoid()
    parents = torch.tensor(hierarchy.parents, device=logits.device)
    children = (parents >= 0).nonzero()[:, 0]
    loss = score.new_zeros(())
    if len(children):
        above = parents[children]
        lower, upper = score.index_select(1, children), score.index_select(1, above)
        inner = torch.arange(tree.level_sizes[0], len(hierarchy), device=logits.device)
        best = _best_child(score, children, above - tree.level_sizes[0], len(inner))
        whole = score.index_select(1, inner)
        loss = loss + _breach(lower - lower * upper, valid, q) + _breach(whole - whole * best, valid, q)
    family, size = tree.family, tree.family_sizes
    with_siblings = (size[family] > 1).nonzero()[:, 0]
    if len(with_siblings):
        of_family = score.new_zeros(score.shape[0], len(size), *score.shape[2:]).index_add(1, family, score)
        lone = score.index_select(1, with_siblings)
        family = family[with_siblings]
        others = of_family.index_select(1, family) - lone
        loss = loss + _breach(lone * others / (size[family] - 1)[:, None, None], valid, q)
    return loss


def _best_child(score: Tensor, children: Tensor, above: Tensor, inner: int) -> Tensor:
    """B,inner,H,W: the greatest score among the children of each inner node; ties share the gradient."""
    lower = score.index_select(1, children)
    with torch.no_grad():
        is_best = (lower == group_max(lower, above, inner).index_select(1, above)).to(score.dtype)
        ties = score.new_zeros(score.shape[0], inner, *score.shape[2:]).index_add(1, above, is_best)
        share = is_best / ties.index_select(1, above)
    return score.new_zeros(ties.shape).index_add(1, above, lower * share)


def _breach(x: Tensor, valid: Tensor, q: float) -> Tensor:
    """B,C,H,W of 0..1 to the mean over C of (mean over valid pixels of x^q)^(1/q)."""
    x = x.clamp(min=0).where(valid[:, None], 0).transpose(0, 1).flatten(1)
    peak = x.detach().amax(dim=1)
    scale = torch.where(peak > 0, peak, 1)  # so that x^q keeps its digits
    mean = (x / scale[:, None]).pow(q).sum(dim=1) / valid.sum().clamp(min=1)
    # The root has no slope at 0, where nothing is broken.
    return (scale * mean.where(peak > 0, 1).pow(1 / q)).where(peak > 0, 0).mean()
