"""Counting over a whole set.

Everything counted is a whole number in one flat int64 tensor. So a set of any size is counted exactly, processes are
reduced by adding their tensors, and no mean is ever taken of the means of batches.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from seghiero_core.hierarchy.tensors import TreeTensors, tree_tensors
from seghiero_core.hierarchy.tree import Hierarchy

ECE_BINS = 15
CURVE_BINS = 100
CONFIDENCE_UNIT = 2**20
"""A confidence of 1 as a whole number. It is a power of two below float32's 24 bits, so that it is exact."""


class Counts:
    """The counts of a set. L is the number of levels, P of valid pixels in a batch.

    Attributes:
        values: All counts, one flat int64 tensor.
    """

    def __init__(self, hierarchy: Hierarchy) -> None:
        levels = len(hierarchy.levels)
        self.hierarchy = hierarchy
        self._shapes: dict[str, tuple[int, ...]] = {}
        for number, level in enumerate(hierarchy.levels):
            self._shapes[f"confusion{number}"] = (len(level.nodes), len(level.nodes) + 1)  # truth, prediction + 1
        self._shapes["calibration"] = (levels, 3, ECE_BINS)  # pixels, right ones, summed confidence
        self._shapes["curve"] = (levels, 2, 2, CURVE_BINS)  # see add_curve
        self._shapes["pixels"] = (5,)  # valid, consistent, whole path right, mistaken, summed tree distance
        self.values = torch.zeros(sum(math.prod(shape) for shape in self._shapes.values()), dtype=torch.int64)

    def part(self, name: str) -> Tensor:
        """Return a view of one part of `values`.

        Args:
            name: `confusion0` (of level 0), `confusion1`, ..., `calibration`, `curve` or `pixels`.

        Returns:
            C,C+1 (truth, prediction + 1) of a confusion; L,3,ECE_BINS; L,2,2,CURVE_BINS; or 5 totals.

        Raises:
            KeyError: When there is no such part.
        """
        start = 0
        for key, shape in self._shapes.items():
            if key == name:
                return self.values[start : start + math.prod(shape)].view(shape)
            start += math.prod(shape)
        raise KeyError(name)

    def add_predictions(self, ids: Tensor, label: Tensor) -> None:
        """Count what `Metrics.compute` needs for everything but calibration.

        Args:
            ids: L,P class numbers, -1 where the prediction backed off.
            label: (P) node indices.
        """
        tree = tree_tensors(self.hierarchy, label.device)
        truth, labelled = tree.class_of[:, label], tree.labelled[:, label]
        for number, size in enumerate(tree.level_sizes):
            flat = truth[number] * (size + 1) + ids[number] + 1
            matrix = self.part(f"confusion{number}")
            matrix += _histogram(flat[labelled[number]], matrix.numel()).view(matrix.shape)
        distance = _distance(ids, label, labelled, tree)
        path_right = ((truth == ids) | ~labelled).all(dim=0)
        consistent = _consistent(ids, tree)
        totals = (torch.ones_like(label), consistent, path_right, distance > 0, distance)
        self.part("pixels").add_(torch.stack([total.sum() for total in totals]))

    def add_calibration(self, ids: Tensor, confidence: Tensor, label: Tensor) -> None:
        """Count confidences by whether the class is right, at levels with a label and a prediction.

        Args:
            ids: L,P class numbers, -1 where the prediction backed off.
            confidence: L,P scores in 0..1.
            label: (P) node indices.
        """
        tree = tree_tensors(self.hierarchy, label.device)
        right = tree.class_of[:, label] == ids
        counted = tree.labelled[:, label] & (ids >= 0)
        bins = (confidence * ECE_BINS).ceil().long().sub_(1).clamp_(0, ECE_BINS - 1)  # bins are open below
        units = (confidence.float() * CONFIDENCE_UNIT).round().long()
        for number, part in enumerate(self.part("calibration")):
            keep = counted[number]
            index = bins[number][keep]
            part[0] += _histogram(index, ECE_BINS)
            part[1] += _histogram(index[right[number][keep]], ECE_BINS)
            part[2].index_add_(0, index, units[number][keep])

    def add_curve(self, ids: Tensor, confidence: Tensor, label: Tensor) -> None:
        """Count what the curve of thresholds needs, over pixels that are labeled with a leaf.

        A pixel stops at level l for thresholds in (best score up to l-1, best score up to l]. So each level has two
        histograms by whether its class is right: of the best score up to the level, and of the best up to the next
        finer one. The difference of the two says how many pixels stop at the level.

        Args:
            ids: L,P class numbers, decoded without a threshold.
            confidence: L,P scores in 0..1.
            label: (P) node indices.
        """
        tree = tree_tensors(self.hierarchy, label.device)
        is_leaf = label < tree.level_sizes[0]
        right = (tree.class_of[:, label[is_leaf]] == ids[:, is_leaf]).long()
        best = confidence[:, is_leaf].cummax(dim=0).values
        bins = (best * CURVE_BINS).long().clamp_(0, CURVE_BINS - 1)
        for level, part in enumerate(self.part("curve")):
            part[0] += _histogram(right[level] * CURVE_BINS + bins[level], 2 * CURVE_BINS).view(2, CURVE_BINS)
            if level > 0:
                part[1] += _histogram(right[level] * CURVE_BINS + bins[level - 1], 2 * CURVE_BINS).view(2, CURVE_BINS)


def _histogram(index: Tensor, size: int) -> Tensor:
    return torch.bincount(index, minlength=size)


def _consistent(ids: Tensor, tree: TreeTensors) -> Tensor:
    """P bool: every level is the parent class of the next finer one, wherever that one isn't -1."""
    agree = torch.ones_like(ids[0], dtype=torch.bool)
    for finer, coarser, parent_class in zip(ids[:-1], ids[1:], tree.parent_class[:-1], strict=True):
        agree &= (finer < 0) | (parent_class[finer.clamp(min=0)] == coarser)
    return agree


def _distance(ids: Tensor, label: Tensor, labelled: Tensor, tree: TreeTensors) -> Tensor:
    """P: edges from the label to the deepest predicted node that is not finer than it, or to the root."""
    root = len(tree.distance) - 1
    node = torch.full_like(label, root)
    for level in reversed(range(len(ids))):
        predicted = (ids[level] >= 0) & labelled[level]
        node = torch.where(predicted, tree.level_nodes[level][ids[level].clamp(min=0)], node)
    return tree.distance[node, label]
