"""From logits to a class at every level.

Logits over the leaves (K channels) are a softmax over leaves, and a coarser class has the sum of its leaves. What
logits over all nodes (N channels) mean depends on the loss that they were trained with, which `scores` names:

- "softmax": only the first K count, as above (leaf losses; the default).
- "levels": one softmax per level, over the nodes of the level (level_cross_entropy).
- "siblings": a softmax among siblings at every branch; the score of a node is the product down its path
  (conditional_cross_entropy).
- "sigmoid": an independent sigmoid for every node (node_bce, tree_min, focal_tree_min, tree_rules).

Each level gets scores in 0..1 for its classes; those of "softmax" and "siblings" are probabilities that add up over
the tree. Everything here is tensor arithmetic without branches on data, so that it can be traced and exported.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from seghiero_core.decode_modes import DEFAULT_DECODING, check_decoding, undecided_id
from seghiero_core.errors import UsageError, nearest
from seghiero_core.hierarchy.tensors import TreeTensors, tree_tensors
from seghiero_core.hierarchy.tree import Hierarchy

SCORES = ("softmax", "levels", "siblings", "sigmoid")
PRODUCT_CLASSES = 24
"""Up to so many classes are computed by a matrix product, which takes 2 operations per class and term, but reads every
term once and in order. Above, sums follow the edges of the tree, so that the work grows linearly with the nodes."""
ADDED_CHILDREN = 8
"""Up to so many children are added one after the other; more are gathered first, which takes memory of their size."""


class Decoded(NamedTuple):
    """The predicted class and its score for every pixel, one entry per level, finest first.

    Attributes:
        ids: B,H,W int64 each, class numbers of the level (positions in `hierarchy.levels[l].nodes`); -1 where the
            prediction backed off to a coarser level.
        confidence: B,H,W float each, the score in 0..1 of the class at that level.
    """

    ids: tuple[Tensor, ...]
    confidence: tuple[Tensor, ...]


def decode(
    logits: Tensor,
    hierarchy: Hierarchy,
    mode: str = DEFAULT_DECODING.mode,
    confidence: float | None = None,
    *,
    scores: str = "softmax",
) -> Decoded:
    """Decode logits into the class and its score at every level.

    `best_path`, `best_path_sum` and `best_path_min` are the inference of Li et al., "Deep Hierarchical Semantic
    Segmentation" (CVPR 2022, eq. 6) with three ways of adding up a path. A leaf that represents itself at several
    levels counts in each, so that all paths have the same length. `expected_cost` is Karthik et al., "No Cost
    Likelihood Manipulation at Test Time" (ICLR 2021).

    Args:
        logits: B,K,H,W over leaves or B,N,H,W over nodes.
        hierarchy: The class tree.
        mode: One of `decode_modes.MODES`.
        confidence: A threshold in 0..1: predictions back off along their path to the deepest node whose score reaches
            it; see `back_off`. None: every pixel gets a class at every level.
        scores: What the logits mean, one of `SCORES`. All but "softmax" need logits over nodes.

    Returns:
        Class numbers and scores per level.

    Raises:
        UsageError: When the mode or scores are unknown, the threshold isn't in 0..1, the number of channels is neither
            K nor N, the scores need N channels and there are K, or `expected_cost` meets "sigmoid" scores, which are
            not a distribution over leaves.

    Example:
        >>> hierarchy = Hierarchy.from_config(
        ...     {"labels": ["sky", "car", "bus"], "tree": {"sky": None, "vehicle": ["car", "bus"]}}
        ... )
        >>> logits = torch.tensor([1.0, 0.8, 0.7]).view(1, 3, 1, 1)  # sky is the best leaf, but vehicle beats it above
        >>> [level.item() for level in decode(logits, hierarchy, "leaf").ids]
        [0, 0]
        >>> [level.item() for level in decode(logits, hierarchy, "top_down").ids]
        [1, 1]
    """
    check_decoding(mode, confidence)
    if mode == "expected_cost" and scores == "sigmoid":
        raise UsageError(
            "decoding 'expected_cost' needs a distribution over the leaves, but 'sigmoid' scores (of models trained "
            "with losses such as tree_min) are independent. Choose another decoding, for example 'best_path'."
        )
    by_level = level_scores(logits, hierarchy, scores)
    if mode == "per_level":
        ids = [_best(score) for score in by_level]
    elif mode == "top_down":
        ids = _top_down(by_level, hierarchy)
    else:
        leaf = _best(_leaf_scores(by_level, hierarchy, mode, scores))
        ids = [leaf, *(table[leaf] for table in tree_tensors(hierarchy, logits.device).leaf_to_level[1:])]
    picked = [score.gather(1, level_ids[:, None])[:, 0] for score, level_ids in zip(by_level, ids, strict=True)]
    decoded = Decoded(tuple(ids), tuple(picked))
    return decoded if confidence is None else back_off(decoded, confidence)


def back_off(decoded: Decoded, threshold: float) -> Decoded:
    """Back off to the deepest class of each prediction whose score reaches a threshold.

    Levels above that class are kept, whatever their own score. If no level reaches the threshold, all are -1. Where
    scores add up over the tree and the threshold is above one half, at most one path can reach it, and `top_down`
    finds it.

    Args:
        decoded: Predictions without a threshold.
        threshold: In 0..1.

    Returns:
        The predictions with an id of -1 at levels finer than that class; scores are unchanged.
    """
    ids, passed = [], torch.zeros_like(decoded.ids[0], dtype=torch.bool)
    for level_ids, score in zip(decoded.ids, decoded.confidence, strict=True):
        passed = passed | (score >= threshold)
        ids.append(level_ids.where(passed, -1))
    return Decoded(tuple(ids), decoded.confidence)


def written_ids(decoded: Decoded, hierarchy: Hierarchy) -> tuple[Tensor, ...]:
    """Return the ids as files hold them, with `undecided_id` in place of -1.

    Args:
        decoded: Predictions.
        hierarchy: The class tree.

    Returns:
        B,H,W int64 each, finest level first.
    """
    return tuple(ids.where(ids >= 0, undecided_id(hierarchy)) for ids in decoded.ids)


def level_scores(logits: Tensor, hierarchy: Hierarchy, scores: str = "softmax") -> list[Tensor]:
    """Compute the scores of the classes of every level.

    Args:
        logits: B,K,H,W over leaves or B,N,H,W over nodes.
        hierarchy: The class tree.
        scores: What the logits mean, one of `SCORES`.

    Returns:
        B,C[l],H,W scores in 0..1 of each level, finest first.

    Raises:
        UsageError: When the scores are unknown or don't fit the number of channels; see `decode`.
    """
    num_leaves, num_nodes, channels = len(hierarchy.leaves), len(hierarchy), logits.shape[1]
    if scores not in SCORES:
        raise UsageError(f"unknown scores '{scores}'.{nearest(scores, SCORES)} Known: {', '.join(SCORES)}.")
    if channels not in (num_leaves, num_nodes):
        raise UsageError(
            f"the logits have {channels} channels; expected {num_leaves} or {num_nodes}, because the tree has "
            f"{num_leaves} leaves and {num_nodes} nodes."
        )
    if scores != "softmax" and channels != num_nodes:
        raise UsageError(
            f"'{scores}' scores need logits over all {num_nodes} nodes, and these are over the {num_leaves} leaves. "
            "Use 'softmax', or train with a loss over nodes."
        )
    # Whole planes of classes are added and compared: with a pixel's classes side by side that is many times slower.
    logits = (logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits).contiguous()
    if scores == "levels":
        return [logits[:, list(level.nodes)].softmax(dim=1) for level in hierarchy.levels]
    if scores == "sigmoid":
        by_node = logits.sigmoid()
        return [by_node[:, list(level.nodes)] for level in hierarchy.levels]
    return _with_levels(
        logits[:, :num_leaves].softmax(dim=1) if scores == "softmax" else _products(logits, hierarchy), hierarchy
    )


def _with_levels(leaf: Tensor, hierarchy: Hierarchy) -> list[Tensor]:
    """B,K,H,W probabilities of the leaves to B,C,H,W of every level: each class has the sum of its children."""
    tree, by_level = tree_tensors(hierarchy, leaf.device), [leaf]
    for level, classes in enumerate(tree.level_sizes[1:]):
        by_level.append(_sum_children(by_level[-1], tree, level, classes).clamp(max=1))
    return by_level


def _sum_children(x: Tensor, tree: TreeTensors, level: int, classes: int) -> Tensor:
    """B,C,H,W of a level to the sums of the classes above.

    Not by scattering, whose sums would have no fixed order on a GPU or in onnxruntime.
    """
    if classes <= PRODUCT_CLASSES:
        return _product(tree.parent_class[level] == torch.arange(classes, device=x.device)[:, None], x)
    by_number, place = tree.children_by_number[level]
    sums = [
        x.index_select(1, children.flatten()).unflatten(1, children.shape).sum(dim=2)
        if children.shape[1] > ADDED_CHILDREN
        else functools.reduce(torch.add, (x.index_select(1, column) for column in children.unbind(dim=1)))
        for children in by_number
    ]
    return torch.cat(sums, dim=1).index_select(1, place)


def _product(table: Tensor, x: Tensor) -> Tensor:
    """M,C times B,C,H,W to B,M,H,W."""
    with torch.autocast(x.device.type, enabled=False):
        return (table.to(x.dtype) @ x.flatten(2)).unflatten(2, x.shape[2:])


def _products(logits: Tensor, hierarchy: Hierarchy) -> Tensor:
    """B,K,H,W probabilities of the leaves: the products of the softmax among siblings down their paths."""
    leaves = len(hierarchy.leaves)
    parents = (-1, *reversed(range(leaves, len(hierarchy))))  # inner nodes come after the leaves, deepest first
    families = [hierarchy.children(parent) for parent in parents]
    siblings = logits[:, list(itertools.chain(*families))].split([len(family) for family in families], dim=1)
    log_p: dict[int, Tensor] = {}
    for parent, children, among in zip(parents, families, siblings, strict=True):
        shares = among.log_softmax(dim=1)
        shares = shares if parent < 0 else shares + log_p[parent][:, None]
        log_p.update(zip(children, shares.unbind(dim=1), strict=True))
    return torch.stack([log_p[leaf] for leaf in range(leaves)], dim=1).exp()


def _leaf_scores(by_level: list[Tensor], hierarchy: Hierarchy, mode: str, scores: str) -> Tensor:
    """B,K,H,W: for each leaf, the score of which the mode chooses the greatest."""
    if mode == "leaf":
        return by_level[0]
    if mode == "expected_cost":
        if by_level[0].shape[1] <= PRODUCT_CLASSES:
            return -_product(tree_tensors(hierarchy, by_level[0].device).leaf_distance, by_level[0])
        return _negative_cost(_with_levels(by_level[0], hierarchy) if scores == "levels" else by_level, hierarchy)
    combine = {"best_path": torch.mul, "best_path_sum": torch.add, "best_path_min": torch.minimum}[mode]
    return _down_paths(by_level, hierarchy, combine)


def _down_paths(by_level: list[Tensor], hierarchy: Hierarchy, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """B,K,H,W: the scores along the path of each leaf, combined from the top, so that no class is read twice."""
    above = tree_tensors(hierarchy, by_level[0].device).parent_class
    combined = by_level[-1]
    for level in reversed(range(len(by_level) - 1)):
        combined = combine(by_level[level], combined.index_select(1, above[level]))
    return combined


def _negative_cost(by_level: list[Tensor], hierarchy: Hierarchy) -> Tensor:
    """B,K,H,W: for each leaf a number that falls as the expected number of edges to the true leaf grows.

    Leaves a and b are depth(a) + depth(b) - 2 c edges apart, where c counts the nodes that are on both paths. The
    expected c is the sum of the probabilities of the nodes on the path of a, each of which counts once.
    """
    summed, leaf = _down_paths(by_level, hierarchy, torch.add), by_level[0]
    depth = tree_tensors(hierarchy, leaf.device).depths[: leaf.shape[1], None, None].to(leaf.dtype)
    repeats = len(by_level) - depth  # how often a leaf represents itself at a coarser level
    return torch.addcmul(summed, leaf, repeats, value=-1) - depth / 2


def _top_down(by_level: list[Tensor], hierarchy: Hierarchy) -> list[Tensor]:
    """B,H,W class numbers per level, finest first, each chosen among the children of the one above it."""
    above, ids = tree_tensors(hierarchy, by_level[0].device).parent_class, [_best(by_level[-1])]
    for level in range(len(by_level) - 2, -1, -1):
        under = above[level][:, None, None] == ids[0][:, None]
        ids.insert(0, _best(by_level[level].where(under, -1)))
    return ids


def _best(scores: Tensor) -> Tensor:
    """B,C,H,W scores to the first best class, B,H,W; on a CPU argmax takes two to four times as long."""
    return scores.max(dim=1).indices
