"""From logits to a class at every level.

Logits over the leaves (K channels) are a softmax over leaves, and a coarser class has the sum of its leaves. Logits
over all nodes (N channels) mean what the losses made of them, which `scores` says:

- "softmax": only the first K count, as above (leaf losses; the default).
- "levels": one softmax per level, over the nodes of the level (level_cross_entropy).
- "siblings": a softmax among siblings at every branch; a node has the product down its path
  (conditional_cross_entropy).
- "sigmoid": every node its own yes or no (node_bce, tree_min, focal_tree_min, tree_rules).

Either way each level gets scores in 0..1 for its classes; those of "softmax" and "siblings" add up over the tree.
Everything here is plain tensor arithmetic without branches on data, so that it can be traced and exported.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from seghiero_core.decode_modes import check_decoding, undecided_id
from seghiero_core.errors import UsageError, nearest
from seghiero_core.hierarchy.tensors import tree_tensors
from seghiero_core.hierarchy.tree import Hierarchy

SCORES = ("softmax", "levels", "siblings", "sigmoid")


class Decoded(NamedTuple):
    """A class and its score for every pixel, one entry per level, finest first.

    Attributes:
        ids: B,H,W int64 each, in the numbering of the level (`hierarchy.levels[l].nodes`); -1 where the prediction
            backed off to a coarser level.
        confidence: B,H,W float each, the score in 0..1 of the class at that level.
    """

    ids: tuple[Tensor, ...]
    confidence: tuple[Tensor, ...]


def decode(
    logits: Tensor,
    hierarchy: Hierarchy,
    mode: str = "leaf",
    confidence: float | None = None,
    *,
    scores: str = "softmax",
) -> Decoded:
    """Decode logits B,K,H,W over leaves or B,N,H,W over nodes; `mode` is one of `decodings.MODES`, `scores`
    one of SCORES.

    `best_path*` is the inference of Li et al. (CVPR 2022, eq. 6) with a choice of how a path adds up; a leaf that
    stands for itself at several levels counts in each, so that paths are of one length. `expected_cost` is
    Karthik et al., "No Cost Likelihood Manipulation at Test Time" (ICLR 2021). With `confidence` (a threshold in 0..1)
    a prediction backs off along its path to the deepest node whose score reaches it; see `back_off`.

    Raises UsageError for an unknown mode, a threshold outside 0..1, a number of channels that is neither K nor N,
    scores that need N channels where there are K, and `expected_cost` on sigmoid scores, which are no distribution
    over leaves.
    """
    check_decoding(mode, confidence)
    if mode == "expected_cost" and scores == "sigmoid":
        raise UsageError(
            "decoding 'expected_cost' needs a distribution over the leaves, and this model was trained with a loss of "
            "independent sigmoid scores; choose another, for example 'best_path'."
        )
    by_level = level_scores(logits, hierarchy, scores)
    if mode == "per_level":
        ids = [score.argmax(dim=1) for score in by_level]
    elif mode == "top_down":
        ids = _top_down(by_level, hierarchy)
    else:
        leaf = _leaf_scores(by_level, hierarchy, mode).argmax(dim=1)
        ids = [leaf, *(table[leaf] for table in tree_tensors(hierarchy, logits.device).leaf_to_level[1:])]
    picked = [score.gather(1, of_level[:, None])[:, 0] for score, of_level in zip(by_level, ids, strict=True)]
    decoded = Decoded(tuple(ids), tuple(picked))
    return decoded if confidence is None else back_off(decoded, confidence)


def back_off(decoded: Decoded, threshold: float) -> Decoded:
    """Put -1 at every level finer than the deepest node of the prediction whose score is at least `threshold`.

    The levels above that node stay, whatever their own score; a pixel none of whose levels pass is -1 at all. Where
    scores add up over the tree, `top_down` with a threshold above one half finds the one path that can pass at all.
    """
    ids, passed = [], torch.zeros_like(decoded.ids[0], dtype=torch.bool)
    for of_level, score in zip(*decoded, strict=True):
        passed = passed | (score >= threshold)
        ids.append(of_level.where(passed, -1))
    return Decoded(tuple(ids), decoded.confidence)


def written_ids(decoded: Decoded, hierarchy: Hierarchy) -> tuple[Tensor, ...]:
    """The ids as files hold them: `undecided_id` in place of -1."""
    return tuple(ids.where(ids >= 0, undecided_id(hierarchy)) for ids in decoded.ids)


def level_scores(logits: Tensor, hierarchy: Hierarchy, scores: str = "softmax") -> list[Tensor]:
    """Scores in 0..1 of the classes of every level, B,C,H,W each, finest first; see `decode` for what it raises."""
    num_leaves, num_nodes, channels = len(hierarchy.leaves), len(hierarchy), logits.shape[1]
    if scores not in SCORES:
        raise UsageError(f"there are no scores '{scores}'.{nearest(scores, SCORES)} Known: {', '.join(SCORES)}.")
    if channels not in (num_leaves, num_nodes):
        raise UsageError(
            f"the logits have {channels} channels; the tree has {num_leaves} leaves and {num_nodes} nodes, "
            "so one of these two was expected."
        )
    if scores != "softmax" and channels != num_nodes:
        raise UsageError(
            f"'{scores}' scores need logits over all {num_nodes} nodes, and these are over the {num_leaves} leaves; "
            "use 'softmax', or train with a loss over nodes."
        )
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    if scores == "levels":
        return [logits[:, list(level.nodes)].softmax(dim=1) for level in hierarchy.levels]
    if scores == "sigmoid":
        by_node = logits.sigmoid()
        return [by_node[:, list(level.nodes)] for level in hierarchy.levels]
    leaf = logits[:, :num_leaves].softmax(dim=1) if scores == "softmax" else _products(logits, hierarchy)
    return [leaf, *(_sum_leaves(leaf, member) for member in tree_tensors(hierarchy, leaf.device).members)]


def _sum_leaves(leaf: Tensor, member: Tensor) -> Tensor:
    """B,K,H,W probabilities of leaves to B,C,H,W of the classes above them; a product, as export likes it."""
    with torch.autocast(leaf.device.type, enabled=False):
        summed = member.to(leaf.dtype) @ leaf.flatten(2)
    return summed.unflatten(2, leaf.shape[2:]).clamp(max=1)


def _products(logits: Tensor, hierarchy: Hierarchy) -> Tensor:
    """Probabilities of the leaves, the products of softmax among siblings down their paths."""
    column = {}
    for parent in np.unique(hierarchy.parents).tolist():
        children = hierarchy.children(parent)
        column.update(zip(children, logits[:, list(children)].log_softmax(dim=1).unbind(dim=1), strict=True))
    leaves = range(len(hierarchy.leaves))
    log_p = [sum((column[node] for node in hierarchy.ancestors(leaf)), start=column[leaf]) for leaf in leaves]
    return torch.stack(log_p, dim=1).exp()


def _leaf_scores(by_level: list[Tensor], hierarchy: Hierarchy, mode: str) -> Tensor:
    """B,K,H,W: what the mode wants greatest among leaves."""
    if mode == "leaf":
        return by_level[0]
    if mode == "expected_cost":
        cost = tree_tensors(hierarchy, by_level[0].device).leaf_distance.to(by_level[0].dtype)
        with torch.autocast(cost.device.type, enabled=False):
            return -(cost @ by_level[0].flatten(2)).unflatten(2, by_level[0].shape[2:])
    total = None
    for score, table in zip(by_level, tree_tensors(hierarchy, by_level[0].device).leaf_to_level, strict=True):
        along = score[:, table]
        if total is None:
            total = along
        elif mode == "best_path_min":
            total = torch.minimum(total, along)
        else:
            total = total + along if mode == "best_path_sum" else total * along
    return total


def _top_down(by_level: list[Tensor], hierarchy: Hierarchy) -> list[Tensor]:
    """Class numbers per level, finest first, each chosen among the classes under the one chosen above it."""
    above, ids = tree_tensors(hierarchy, by_level[0].device).parent_class, [by_level[-1].argmax(dim=1)]
    for level in range(len(by_level) - 2, -1, -1):
        under = above[level][:, None, None] == ids[0][:, None]
        ids.insert(0, by_level[level].where(under, -1).argmax(dim=1))
    return ids
