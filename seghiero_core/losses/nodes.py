"""Losses that treat every node as a binary decision: binary cross-entropy and its tree-coherent forms.

The label's node and its ancestors are positive, the nodes below the label are unknown and do not count, and all others
are negative. With z the logits, the score of a node is sigmoid(s), where

    binary cross-entropy:  s = z
    tree-min:              s = min z over the node and its ancestors, if it is positive,
                           s = max z over the node and its descendants, if it is negative.

sigmoid is monotone, so the minimum and maximum are taken over logits, and nothing overflows.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from seghiero_core.hierarchy.tensors import TreeTensors, tree_tensors
from seghiero_core.hierarchy.tree import IGNORE_INDEX, Hierarchy
from seghiero_core.losses.fused import sum_over_pixels
from seghiero_core.losses.inputs import check_inputs
from seghiero_core.losses.reductions import labels, look_up, max_into, widen


def node_bce(
    logits: Tensor,
    target: Tensor,
    hierarchy: Hierarchy,
    *,
    ignore_index: int = IGNORE_INDEX,
    validate: bool = True,
) -> Tensor:
    """Compute the binary cross-entropy of every node.

    With s = sigmoid(logits), the loss is the mean over the valid pixels and their known nodes of

        -log s_v        where v is the label or above it
        -log(1 - s_v)   where v is neither above nor below the label

    Nodes below an inner node's label are unknown and do not count.

    Args:
        logits: B,N,H,W over nodes.
        target: B,H,W of node indices or `ignore_index`.
        hierarchy: The class tree, with K leaves and N nodes.
        ignore_index: Target value of the pixels that do not count.
        validate: Whether to check the target's values; on a GPU this synchronizes.

    Returns:
        Scalar loss, at least 0; 0 where no pixel counts.

    Raises:
        ValueError: When a shape, the number of channels or a target value is wrong.

    Example:
        >>> tree = {"vehicle": ["car", "bus"], "sky": None}
        >>> hierarchy = Hierarchy.from_config({"labels": ["car", "bus", "sky"], "tree": tree})
        >>> logits = torch.zeros(1, 4, 1, 2)
        >>> target = torch.tensor([[[0, IGNORE_INDEX]]])
        >>> node_bce(logits, target, hierarchy)  # log 2
        tensor(0.6931)
    """
    return _mean_over_nodes(logits, target, hierarchy, ignore_index, validate, coherent=False, gamma=0.0)


def tree_min(
    logits: Tensor,
    target: Tensor,
    hierarchy: Hierarchy,
    *,
    ignore_index: int = IGNORE_INDEX,
    validate: bool = True,
) -> Tensor:
    """Compute the tree-min loss: a binary cross-entropy of scores that agree with the tree.

    With s = sigmoid(logits), the loss is the mean over the valid pixels and their known nodes of

        -log p_v        with p_v = min of s over v and its ancestors,    where v is the label or above it
        -log(1 - q_v)   with q_v = max of s over v and its descendants,  where v is neither above nor below the label

    Nodes below an inner node's label are unknown and do not count. Nodes that share a maximum share its gradient.

    Reference: Li et al., "Deep Hierarchical Semantic Segmentation", CVPR 2022, eq. 4-5.

    Args:
        logits: B,N,H,W over nodes.
        target: B,H,W of node indices or `ignore_index`.
        hierarchy: The class tree, with K leaves and N nodes.
        ignore_index: Target value of the pixels that do not count.
        validate: Whether to check the target's values; on a GPU this synchronizes.

    Returns:
        Scalar loss, at least 0; 0 where no pixel counts.

    Raises:
        ValueError: When a shape, the number of channels or a target value is wrong.

    Example:
        >>> tree = {"vehicle": ["car", "bus"], "sky": None}
        >>> hierarchy = Hierarchy.from_config({"labels": ["car", "bus", "sky"], "tree": tree})
        >>> logits = torch.tensor([2.0, -2.0, -2.0, 0.0]).view(1, 4, 1, 1)  # car, bus, sky, vehicle
        >>> target = torch.tensor([[[0]]])
        >>> tree_min(logits, target, hierarchy)  # a car is no likelier than a vehicle: (2 log 2 + 2 * 0.1269) / 4
        tensor(0.4100)
    """
    return _mean_over_nodes(logits, target, hierarchy, ignore_index, validate, coherent=True, gamma=0.0)


def focal_tree_min(
    logits: Tensor,
    target: Tensor,
    hierarchy: Hierarchy,
    *,
    ignore_index: int = IGNORE_INDEX,
    gamma: float = 2.0,
    validate: bool = True,
) -> Tensor:
    """Compute the focal tree-min loss: `tree_min` with less weight on the terms that are already right.

    With p_v and q_v as in `tree_min`, its terms become

        -(1 - p_v)^gamma log p_v   and   -q_v^gamma log(1 - q_v)

    Reference: Li et al., "Deep Hierarchical Semantic Segmentation", CVPR 2022, eq. 7.

    Args:
        logits: B,N,H,W over nodes.
        target: B,H,W of node indices or `ignore_index`.
        hierarchy: The class tree, with K leaves and N nodes.
        ignore_index: Target value of the pixels that do not count.
        gamma: How much less a right term weighs, at least 0; 0 gives `tree_min`.
        validate: Whether to check the target's values; on a GPU this synchronizes.

    Returns:
        Scalar loss, at least 0; 0 where no pixel counts.

    Raises:
        ValueError: When a shape, the number of channels or a target value is wrong.

    Example:
        >>> tree = {"vehicle": ["car", "bus"], "sky": None}
        >>> hierarchy = Hierarchy.from_config({"labels": ["car", "bus", "sky"], "tree": tree})
        >>> logits = torch.zeros(1, 4, 1, 2)
        >>> target = torch.tensor([[[0, IGNORE_INDEX]]])
        >>> focal_tree_min(logits, target, hierarchy)  # log 2 / 2^2
        tensor(0.1733)
    """
    return _mean_over_nodes(logits, target, hierarchy, ignore_index, validate, coherent=True, gamma=float(gamma))


def _mean_over_nodes(
    logits: Tensor,
    target: Tensor,
    hierarchy: Hierarchy,
    ignore_index: int,
    validate: bool,
    *,
    coherent: bool,
    gamma: float,
) -> Tensor:
    logits, target = check_inputs(logits, target, hierarchy, "nodes", ignore_index=ignore_index, validate=validate)
    tree = tree_tensors(hierarchy, logits.device)
    label = labels(target, tree, ignore_index)
    known = (len(hierarchy) - tree.below.sum(dim=1)) * (tree.depths > 0)  # N+1: known nodes of a pixel with each label
    count = (known * label.flatten().bincount(minlength=len(known))).sum().clamp(min=1)
    scale = 1 / count.to(widen(logits[:0]).dtype)
    piece = functools.partial(_piece, tree=tree, coherent=coherent, gamma=gamma, scale=scale)
    return sum_over_pixels(logits, label, piece)


def _piece(
    z: Tensor, label: Tensor, with_grad: bool, *, tree: TreeTensors, coherent: bool, gamma: float, scale: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Sum of softplus(a) * sigmoid(a)^gamma * scale, with a = s at negatives and -s at positives; z is b,N,p."""
    depth = look_up(tree.depths[None], label).transpose(0, 1)  # b,1,p
    share = (depth > 0) * scale
    chain = look_up(tree.path, label).transpose(0, 1)  # b,D,p from the root's child to the label, then repeated
    a, positive, lowest = z.clone(), z.gather(1, chain), chain
    if coherent:
        _raise_to_subtree_max(a, z, tree)
        lowest = chain.clone()
        for step in range(1, chain.shape[1]):
            higher = positive[:, step] > positive[:, step - 1]
            positive[:, step] = positive[:, step - 1].where(higher, positive[:, step])
            lowest[:, step] = lowest[:, step - 1].where(higher, lowest[:, step])
    a.scatter_(1, chain, -positive)
    if ((label >= tree.level_sizes[0]) & (depth[:, 0] > 0)).any():  # nodes below an inner label are unknown
        a.masked_fill_(tree.below[label].transpose(1, 2), -torch.inf)

    loss, score = F.softplus(a, threshold=40), a.sigmoid()  # beyond it softplus(a) is a, in float64 too
    if gamma == 0:
        total, grad = (loss.sum(dim=1, keepdim=True) * share).sum(), score
    else:
        factor = score.pow(gamma)
        total = ((loss * factor).sum(dim=1, keepdim=True) * share).sum()
        grad = loss.mul_(1 - score).mul_(gamma).add_(score).mul_(factor)
    if not with_grad:
        return total, None
    grad *= share
    at_path = grad.gather(1, chain)
    grad.scatter_(1, chain, 0)
    if coherent:
        _route_to_maxima(grad, z, a, tree)
    # The chain repeats the label past its depth; the repeats are not terms of the loss.
    steps = torch.arange(chain.shape[1], device=z.device)[:, None]
    return total, grad.scatter_add_(1, lowest, -at_path.where(steps < depth, 0))


def _raise_to_subtree_max(a: Tensor, z: Tensor, tree: TreeTensors) -> None:
    """Raise every inner node of `a`, a copy of the logits `z`, to the maximum over the node and its descendants."""
    max_into(a, tree.leaf_parent, z[:, : tree.level_sizes[0]])
    for nodes, parents in tree.inner_by_depth:
        max_into(a, parents, a.index_select(1, nodes))


def _route_to_maxima(grad: Tensor, z: Tensor, a: Tensor, tree: TreeTensors) -> None:
    """Turn gradients of subtree maxima `a` into gradients of the logits `z`, in place; ties share equally."""
    leaves = tree.level_sizes[0]
    if z.shape[1] == leaves:
        return
    parent = (tree.leaf_parent - leaves).clamp(min=0)
    is_max = a.index_select(1, tree.leaf_parent).eq_(z[:, :leaves])
    is_max.index_fill_(1, tree.root_leaves, 0)
    own = (z[:, leaves:] == a[:, leaves:]).to(z.dtype)
    ties = own.index_add(1, parent, is_max)
    inner_is_max = []
    for nodes, parents in tree.inner_by_depth:
        inner_is_max.append((a.index_select(1, nodes) == a.index_select(1, parents)).to(z.dtype))
        ties.index_add_(1, parents - leaves, inner_is_max[-1])
    ties.clamp_(min=1)  # 0 where the label or a node below it has replaced the maxima
    inner = grad[:, leaves:]
    for (nodes, parents), equal in zip(reversed(tree.inner_by_depth), reversed(inner_is_max), strict=True):
        arriving = (inner.index_select(1, parents - leaves) / ties.index_select(1, parents - leaves)).mul_(equal)
        inner.index_add_(1, nodes - leaves, arriving)
    inner /= ties
    grad[:, :leaves].addcmul_(is_max, inner.index_select(1, parent))
    inner *= own
