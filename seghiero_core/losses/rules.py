"""The rules of a tree as a loss."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from seghiero_core.hierarchy.tensors import TreeTensors, tree_tensors
from seghiero_core.hierarchy.tree import IGNORE_INDEX, Hierarchy
from seghiero_core.losses.fused import fused, pieces
from seghiero_core.losses.inputs import check_inputs
from seghiero_core.losses.reductions import group_max, images_with, labels, look_up, node_weights, whole_step, widen


def tree_rules(
    logits: Tensor,
    target: Tensor,
    hierarchy: Hierarchy,
    *,
    ignore_index: int = IGNORE_INDEX,
    q: float = 5.0,
    class_weight: Tensor | None = None,
    counts: Tensor | None = None,
    validate: bool = True,
) -> Tensor:
    """Measure how far the scores break the rules of the tree.

    With s = sigmoid(logits), a node v, its parent u, the children c of u and the other children a of u (v's siblings),
    the degrees to which a pixel breaks the three rules are

        composition    v implies u              s_v - s_v s_u
        decomposition  u implies one of the c   s_u - s_u max_c s_c
        exclusion      v excludes all of the a  s_v mean_a s_a

    A degree x is aggregated over the valid pixels of an image by (mean x^q)^(1/q), in which the worst pixels count
    most, and averaged over the nodes that have the rule; the loss of an image is the sum of the three averages. The
    loss is the mean over the images that have a valid pixel. A rule that no node has counts 0. Use it together with a
    loss that learns from the labels; this one reads only which pixels are ignored, and what they weigh.

    Reference: Li et al., "LogicSeg: Parsing Visual Semantics with Neural Logic Learning and Reasoning", ICCV 2023,
    section 3.2.

    Args:
        logits: B,N,H,W over nodes.
        target: B,H,W of node indices or `ignore_index`.
        hierarchy: The class tree, with K leaves and N nodes.
        ignore_index: Target value of the pixels that do not count.
        q: Exponent of the mean over pixels, at least 1; 1 gives the plain mean.
        class_weight: (K) weights of the leaves; the mean of x^q is then weighted. A pixel weighs what its label does,
            an inner node the mean of its leaves.
        counts: I,N+S+1 pixels of each label in each image of the whole step (see `label_counts`); the loss is then this
            batch's share of the step's. Default: this batch is the whole step.
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
    logits, target = check_inputs(
        logits, target, hierarchy, "nodes", ignore_index=ignore_index, validate=validate, class_weight=class_weight
    )
    if target.numel() == 0:
        return widen(logits).sum() * 0
    tree = tree_tensors(hierarchy, logits.device)
    label = labels(target, tree, ignore_index)
    images = images_with(whole_step(counts, label, hierarchy)[:, :-1])
    weight = node_weights(class_weight, tree, widen(logits[:0]))
    return fused(logits, label, functools.partial(_value_and_grad, tree=tree, weight=weight, images=images, q=q))


class _Scores(NamedTuple):
    """What the degrees of a piece are products of. Family 0 is the root's children, 1 + i those of inner node i."""

    own: Tensor  # b,N,p: of the nodes; 0 at ignored pixels
    missing: Tensor  # b,1+I,p: 1 - the score of each family's parent; 0 for the root
    siblings: Tensor  # b,N,p: the mean of the siblings; 0 for an only child
    best: Tensor  # b,1+I,p: the greatest in each family


def _value_and_grad(
    logits: Tensor, label: Tensor, with_grad: bool, *, tree: TreeTensors, weight: Tensor, images: Tensor, q: float
) -> tuple[Tensor, Tensor | None]:
    """The loss, and its gradient B,N,HW: one pass sums the x^q of every rule, and a second one needs these sums.

    The rules are R rows: composition and exclusion of every node, then decomposition of the inner nodes.
    """
    share, tiny = _shares(tree, weight), torch.finfo(weight.dtype).tiny
    pixels = look_up(weight[None], label).transpose(0, 1)  # B,1,HW
    peak = weight.new_full((len(logits), len(share)), tiny)  # B,R: the greatest x, which keeps x^q from underflowing
    total = torch.zeros_like(peak)  # B,R: the sum of (x / peak)^q
    for rows, columns in pieces(logits):
        piece = pixels[rows, :, columns]
        x = _degrees(_scores(logits[rows, :, columns], piece, tree), tree)
        before = peak[rows].clone()
        peak[rows] = now = torch.maximum(before, x.amax(dim=2))
        power = _power(x, now, q, q, -q * now.log()).mul_(piece)
        total[rows] = total[rows] * (before / now).pow(q) + power.sum(dim=2)

    broken = peak != tiny  # true for NaN
    mass = pixels.sum(dim=2)  # B,1
    mean = (total / mass).where(broken, 1)  # the root is not differentiable at 0, where nothing is broken
    value = (peak * mean.pow(1 / q) * share).where(broken, 0).sum() / images
    if not with_grad:
        return value, None
    log_scale = (1 / q - 1) * mean.log() - (q - 1) * peak.log() + (share / mass / images).log()
    log_scale = log_scale.where(broken, -torch.inf)  # B,R: of the gradient with respect to a degree, without x^(q-1)
    grad = torch.empty(logits.shape, dtype=weight.dtype, device=weight.device)
    for rows, columns in pieces(logits):
        piece = pixels[rows, :, columns]
        scores = _scores(logits[rows, :, columns], piece, tree)
        x_grad = _power(_degrees(scores, tree), peak[rows], q, q - 1, log_scale[rows])
        grad[rows, :, columns] = _backward(x_grad, scores, tree).mul_(piece)
    return value, grad


def _shares(tree: TreeTensors, like: Tensor) -> Tensor:
    """(R) what a rule weighs: 1 / the number of nodes that have it, 0 for a node without it."""
    size = tree.family_sizes[tree.family]
    has_rule = (tree.family > 0, size > 1, torch.ones_like(size[tree.level_sizes[0] :]))
    return torch.cat([rule.to(like) / rule.sum().clamp(min=1) for rule in has_rule])


def _power(x: Tensor, peak: Tensor, q: float, exponent: float, log_scale: Tensor) -> Tensor:
    """x^exponent * exp(log_scale), in place; x is b,R,p and at most `peak` (b,R).

    exp and log take half the time of pow, except for what underflows; exp(-80) of the peak's x^q is as good as 0.
    """
    lowest = (peak * math.exp(-80 / q)).clamp(min=torch.finfo(x.dtype).tiny)
    return torch.maximum(x, lowest[:, :, None], out=x).log_().mul_(exponent).add_(log_scale[:, :, None]).exp_()


def _scores(z: Tensor, pixels: Tensor, tree: TreeTensors) -> _Scores:
    own = widen(z).sigmoid().masked_fill_(pixels == 0, 0)
    leaves, families = tree.level_sizes[0], len(tree.family_sizes)
    missing = torch.cat([torch.zeros_like(own[:, :1]), 1 - own[:, leaves:]], dim=1)
    total = own.new_zeros(missing.shape).index_add_(1, tree.family, own)
    siblings = total.index_select(1, tree.family).sub_(own).mul_(_per_sibling(tree, own))
    return _Scores(own, missing, siblings, group_max(own, tree.family, families))


def _per_sibling(tree: TreeTensors, like: Tensor) -> Tensor:
    """N,1: 1 / the number of siblings of each node; 1 for an only child."""
    return 1 / (tree.family_sizes - 1).clamp(min=1)[tree.family, None].to(like)


def _degrees(scores: _Scores, tree: TreeTensors) -> Tensor:
    """b,R,p: how far a pixel breaks each rule."""
    own, leaves = scores.own, tree.level_sizes[0]
    nodes = own.shape[1]
    x = own.new_empty(own.shape[0], 3 * nodes - leaves, own.shape[2])
    torch.mul(own, scores.missing.index_select(1, tree.family), out=x[:, :nodes])
    torch.mul(own, scores.siblings, out=x[:, nodes : 2 * nodes])
    torch.mul(own[:, leaves:], 1 - scores.best[:, 1:], out=x[:, 2 * nodes :])
    return x


def _backward(x_grad: Tensor, scores: _Scores, tree: TreeTensors) -> Tensor:
    """Turn the gradient with respect to the degrees (b,R,p) into that with respect to the logits (b,N,p)."""
    own, missing, siblings, best = scores
    nodes, leaves, family = own.shape[1], tree.level_sizes[0], tree.family
    composition, exclusion, decomposition = x_grad.split([nodes, nodes, nodes - leaves], dim=1)
    grad = missing.index_select(1, family).mul_(composition).addcmul_(exclusion, siblings)
    # A node receives from its siblings' exclusion what the family does but for its own.
    exclusion.mul_(own).mul_(_per_sibling(tree, own))
    grad += own.new_zeros(missing.shape).index_add_(1, family, exclusion).index_select(1, family)
    grad -= exclusion
    inner = grad[:, leaves:]
    inner -= own.new_zeros(missing.shape).index_add_(1, family, composition.mul_(own))[:, 1:]
    inner.addcmul_(decomposition, 1 - best[:, 1:])
    # The best children share the gradient equally. The root has no decomposition.
    is_best = best.index_select(1, family).eq_(own)
    ties = own.new_zeros(missing.shape).index_add_(1, family, is_best)
    to_best = torch.zeros_like(missing)
    to_best[:, 1:] = decomposition.mul_(own[:, leaves:])
    grad.addcmul_(is_best, to_best.div_(ties).index_select(1, family), value=-1)
    return grad.mul_(own).mul_(1 - own)
