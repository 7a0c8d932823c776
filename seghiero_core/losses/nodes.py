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
from torch import Tensor

from seghiero_core.hierarchy.tensors import TreeTensors, tree_tensors
from seghiero_core.hierarchy.tree import IGNORE_INDEX, Hierarchy
from seghiero_core.losses.fused import sum_over_pixels
from seghiero_core.losses.inputs import check_inputs
from seghiero_core.losses.node_terms import node_terms
from seghiero_core.losses.reductions import labels, node_weights, total_weight, whole_step, widen


def node_bce(
    logits: Tensor,
    target: Tensor,
    hierarchy: Hierarchy,
    *,
    ignore_index: int = IGNORE_INDEX,
    class_weight: Tensor | None = None,
    counts: Tensor | None = None,
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
        class_weight: (K) weights of the leaves. A pixel weighs what its label does, an inner node the mean of its
            leaves.
        counts: I,N+S+1 pixels of each label in each image of the whole step (see `label_counts`); the loss is then this
            batch's share of the step's. Default: this batch is the whole step.
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
    return _mean_over_nodes(
        logits, target, hierarchy, ignore_index, validate, counts, class_weight, coherent=False, gamma=0.0
    )


def tree_min(
    logits: Tensor,
    target: Tensor,
    hierarchy: Hierarchy,
    *,
    ignore_index: int = IGNORE_INDEX,
    class_weight: Tensor | None = None,
    counts: Tensor | None = None,
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
        class_weight: (K) weights of the leaves. A pixel weighs what its label does, an inner node the mean of its
            leaves.
        counts: I,N+S+1 pixels of each label in each image of the whole step (see `label_counts`); the loss is then this
            batch's share of the step's. Default: this batch is the whole step.
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
    return _mean_over_nodes(
        logits, target, hierarchy, ignore_index, validate, counts, class_weight, coherent=True, gamma=0.0
    )


def focal_tree_min(
    logits: Tensor,
    target: Tensor,
    hierarchy: Hierarchy,
    *,
    ignore_index: int = IGNORE_INDEX,
    gamma: float = 2.0,
    class_weight: Tensor | None = None,
    counts: Tensor | None = None,
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
        class_weight: (K) weights of the leaves. A pixel weighs what its label does, an inner node the mean of its
            leaves.
        counts: I,N+S+1 pixels of each label in each image of the whole step (see `label_counts`); the loss is then this
            batch's share of the step's. Default: this batch is the whole step.
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
    return _mean_over_nodes(
        logits, target, hierarchy, ignore_index, validate, counts, class_weight, coherent=True, gamma=float(gamma)
    )


def _mean_over_nodes(
    logits: Tensor,
    target: Tensor,
    hierarchy: Hierarchy,
    ignore_index: int,
    validate: bool,
    counts: Tensor | None,
    class_weight: Tensor | None,
    *,
    coherent: bool,
    gamma: float,
) -> Tensor:
    logits, target = check_inputs(
        logits, target, hierarchy, "nodes", ignore_index=ignore_index, validate=validate, class_weight=class_weight
    )
    tree = tree_tensors(hierarchy, logits.device)
    label = labels(target, tree, ignore_index)
    counts = whole_step(counts, label, hierarchy)
    weight = node_weights(class_weight, tree, widen(logits[:0]))
    known = len(hierarchy) - tree.below.sum(dim=1)  # N+1: known nodes of a pixel with each label
    piece = functools.partial(
        node_terms,
        tree=tree,
        chains=_chains(tree),
        coherent=coherent,
        gamma=gamma,
        share=weight / total_weight(weight * known, counts),
        unknown=bool(counts[:, tree.level_sizes[0] : -1].any()),
    )
    return sum_over_pixels(logits, label, piece)


def _chains(tree: TreeTensors) -> Tensor:
    """D,N+1: the nodes from the child of the root down to each label, preceded by N where there are fewer than D."""
    depth, nodes = len(tree.path), len(tree.depths) - 1
    step = torch.arange(depth, device=tree.path.device)[:, None] - (depth - tree.depths)
    return tree.path.gather(0, step.clamp(min=0)).where(step >= 0, nodes)
