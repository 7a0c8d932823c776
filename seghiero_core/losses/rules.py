"""The rules of a tree as a loss."""

from __future__ import annotations

import torch
from torch import Tensor

from seghiero_core.hierarchy.tensors import tree_tensors
from seghiero_core.hierarchy.tree import IGNORE_INDEX, Hierarchy
from seghiero_core.losses.inputs import check_inputs
from seghiero_core.losses.reductions import group_max, masked_mean, widen


def tree_rules(
    logits: Tensor,
    target: Tensor,
    hierarchy: Hierarchy,
    *,
    ignore_index: int = IGNORE_INDEX,
    q: float = 5.0,
    validate: bool = True,
) -> Tensor:
    """Measure how far the scores break the rules of the tree.

    With s = sigmoid(logits), a node v, its parent u, the children c of u and the other children a of u (v's siblings),
    the degrees to which a pixel breaks the three rules are

        composition    v implies u              s_v - s_v s_u
        decomposition  u implies one of the c   s_u - s_u max_c s_c
        exclusion      v excludes all of the a  s_v mean_a s_a

    A degree x is aggregated over the valid pixels by (mean x^q)^(1/q), in which the worst pixels count most, and
    averaged over the nodes that have the rule; the loss is the sum of the three averages. A rule that no node has
    counts 0. Use it together with a loss that learns from the labels; this one reads only which pixels are ignored.

    Reference: Li et al., "LogicSeg: Parsing Visual Semantics with Neural Logic Learning and Reasoning", ICCV 2023,
    section 3.2.

    Args:
        logits: B,N,H,W over nodes.
        target: B,H,W of node indices or `ignore_index`.
        hierarchy: The class tree, with K leaves and N nodes.
        ignore_index: Target value of the pixels that do not count.
        q: Exponent of the mean over pixels, at least 1; 1 gives the plain mean.
        validate: Whether to check the target's values; on a GPU this synchronizes.

    Returns:
        Scalar loss, 0 to 3; 0 where no pixel counts.

    Raises:
        ValueError: When a shape, the number of channels or a target value is wrong.

    Example:
        >>> tree = {"vehicle": ["car", "bus"], "sky": None}
        >>> hierarchy = Hierarchy.from_config({"labels": ["car", "bus", "sky"], "tree": tree})
        >>> logits = torch.zeros(1, 4, 1, 2)
        >>> target = torch.tensor([[[0, IGNORE_INDEX]]])
        >>> tree_rules(logits, target, hierarchy)  # 1/4 for each rule
        tensor(0.7500)
    """
    logits, target = check_inputs(logits, target, hierarchy, "nodes", ignore_index=ignore_index, validate=validate)
    if target.numel() == 0:
        return widen(logits).sum() * 0
    tree = tree_tensors(hierarchy, logits.device)
    valid = target != ignore_index
    score = widen(logits).sigmoid()
    family, sizes = tree.family, tree.family_sizes
    loss = score.new_zeros(())
    leaves = len(hierarchy.leaves)
    if len(hierarchy) > leaves:
        # Family 0 is the root's children and family 1 + i those of inner node i. The root's score is 1, and its
        # children break no composition.
        inner = score[:, leaves:]
        parent = torch.cat([torch.ones_like(inner[:, :1]), inner], dim=1).index_select(1, family)
        composition = _breach(score - score * parent, valid, q)
        best_child = _family_max(score, family, len(sizes))[:, 1:]
        decomposition = _breach(inner - inner * best_child, valid, q)
        loss = loss + masked_mean(composition, (family > 0).to(score)) + decomposition.mean()
    # An only child's siblings sum to 0, and it has no exclusion to break.
    size = sizes[family]
    family_sum = score.new_zeros(score.shape[0], len(sizes), *score.shape[2:]).index_add(1, family, score)
    siblings = (family_sum.index_select(1, family) - score) / (size - 1).clamp(min=1)[:, None, None]
    return loss + masked_mean(_breach(score * siblings, valid, q), (size > 1).to(score))


def _family_max(score: Tensor, family: Tensor, families: int) -> Tensor:
    """B,families,H,W: the greatest score in each family; ties share the gradient."""
    with torch.no_grad():
        is_best = (score == group_max(score, family, families).index_select(1, family)).to(score.dtype)
        ties = score.new_zeros(score.shape[0], families, *score.shape[2:]).index_add(1, family, is_best)
        share = is_best / ties.index_select(1, family)
    return score.new_zeros(ties.shape).index_add(1, family, score * share)


def _breach(x: Tensor, valid: Tensor, q: float) -> Tensor:
    """B,C,H,W of 0..1 to (C): (mean over the valid pixels of x^q)^(1/q)."""
    x = x.clamp(min=0).where(valid[:, None], 0).transpose(0, 1).flatten(1)
    peak = x.detach().amax(dim=1)
    broken = peak != 0  # true for NaN
    scale = torch.where(broken, peak, 1)  # keeps x^q from underflowing
    mean = (x / scale[:, None]).pow(q).sum(dim=1) / valid.sum().clamp(min=1)
    # The root is not differentiable at 0, where nothing is broken.
    return (scale * mean.where(broken, 1).pow(1 / q)).where(broken, 0)
