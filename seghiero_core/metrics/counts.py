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
from seghiero_core.metrics.boundary import boundary_band

ECE_BINS = 15
CURVE_BINS = 100
CONFIDENCE_UNIT = 2**20
"""A confidence of 1 as a whole number. It is a power of two below float32's 24 bits, so that it is exact."""

INFORMATION_UNIT = 2**20
"""The information of a leaf as a whole number, see `Counts.add_curve`."""


class Counts:
    """The counts of a set. L is the number of levels, P of valid pixels in a batch.

    Attributes:
        values: All counts, one flat int64 tensor.
    """

    def __init__(self, hierarchy: Hierarchy) -> None:
        self.hierarchy = hierarchy
        self._shapes: dict[str, tuple[int, ...]] = {}
        for number, level in enumerate(hierarchy.levels):
            classes = len(level.nodes)
            self._shapes[f"confusion{number}"] = (classes, classes + 1)  # truth, prediction + 1
            self._shapes[f"calibration{number}"] = (classes, 3, ECE_BINS)  # pixels, right ones, summed confidence
            self._shapes[f"boundary{number}"] = (3, classes)  # common, true and predicted pixels near contours
        self._shapes["curve"] = (len(hierarchy.levels), 2, 3, CURVE_BINS)  # see add_curve
        self._shapes["common_ancestor"] = (int(hierarchy.depths.max()),)  # wrong pixels by its depth, from the root
        self._shapes["pixels"] = (5,)  # valid, consistent, whole path right, mistaken, summed tree distance
        self.values = torch.zeros(sum(math.prod(shape) for shape in self._shapes.values()), dtype=torch.int64)

    def part(self, name: str) -> Tensor:
        """Return a view of one part of `values`.

        Args:
            name: `confusion0`, `calibration0` or `boundary0` (of level 0), `confusion1`, ..., `curve`,
                `common_ancestor` or `pixels`.

        Returns:
            C,C+1 (truth, prediction + 1); C,3,ECE_BINS; 3,C; L,2,3,CURVE_BINS; D; or 5 totals.

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
            part = self.part(f"confusion{number}")
            part += confusion(truth[number], ids[number], labelled[number], size)
        node = _judged_node(ids, label, labelled, tree)
        distance = tree.distance[node, label].long()
        path_right = ((truth == ids) | ~labelled).all(dim=0)
        consistent = _consistent(ids, tree)
        totals = (torch.ones_like(label), consistent, path_right, distance > 0, distance)
        self.part("pixels").add_(torch.stack([total.sum() for total in totals]))
        ancestor_depth = (tree.depths[node] + tree.depths[label] - distance) // 2
        wrong = ancestor_depth < tree.depths[node]  # otherwise the node is the label or an ancestor of it
        part = self.part("common_ancestor")
        part += _histogram(ancestor_depth[wrong], len(part))

    def add_boundaries(self, ids: Tensor, label: Tensor, valid: Tensor) -> None:
        """Count the pixels near the contours of the truth and of the prediction.

        Pixels without a label at a level, such as ignored ones, are set to the same class in both.

        Args:
            ids: L,P class numbers, -1 where the prediction backed off.
            label: (P) node indices.
            valid: B,H,W bool, true at the P pixels.
        """
        tree = tree_tensors(self.hierarchy, label.device)
        (places,) = valid.flatten().nonzero(as_tuple=True)  # faster than indexing by `valid` again and again
        for number, size in enumerate(tree.level_sizes):
            labelled = tree.labelled[number, label]
            pair = torch.stack([tree.class_of[number, label], ids[number] % (size + 1)])  # -1 becomes `size`
            maps = torch.full((2, valid.numel()), size + 1, dtype=torch.int16, device=label.device)
            maps.index_copy_(1, places, pair.where(labelled, size + 1).to(torch.int16))
            near = boundary_band(maps.view(-1, *valid.shape[-2:])).view(maps.shape).index_select(1, places) & labelled
            common = near.all(dim=0) & (pair[0] == pair[1])
            part = self.part(f"boundary{number}")
            for row, classes in enumerate((pair[0][common], pair[0][near[0]], pair[1][near[1]])):
                part[row] += _histogram(classes, size + 1)[:size]

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
        for number, size in enumerate(tree.level_sizes):
            keep = counted[number]
            index = (ids[number] * ECE_BINS + bins[number])[keep]
            pixels = _histogram(index, size * ECE_BINS)
            hits = _histogram(index[right[number][keep]], size * ECE_BINS)
            summed = torch.zeros_like(pixels).index_add_(0, index, units[number][keep])
            part = self.part(f"calibration{number}")
            part += torch.stack([pixels, hits, summed]).view(3, size, -1).transpose(0, 1)

    def add_curve(self, ids: Tensor, confidence: Tensor, label: Tensor) -> None:
        """Count what the curve of thresholds needs, over pixels that are labeled with a leaf.

        A pixel stops at level l for thresholds in (best score up to l-1, best score up to l]. So each level has two
        histograms by whether its class is right: of the best score up to the level, and of the best up to the next
        finer one. The difference of the two says how many pixels stop at the level. Beside each of these histograms
        stands the summed information of the classes at the level.

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
            information = (tree.information[level] * INFORMATION_UNIT).round().long()[ids[level][is_leaf]]
            for reached, bin_of in zip(part, bins[max(level - 1, 0) : level + 1].flip(0), strict=False):
                flat = right[level] * CURVE_BINS + bin_of
                reached[:2] += _histogram(flat, 2 * CURVE_BINS).view(2, CURVE_BINS)
                reached[2].index_add_(0, bin_of, information)


def confusion(truth: Tensor, ids: Tensor, labelled: Tensor, classes: int) -> Tensor:
    """Count the pixels of each pair of classes of a level.

    Args:
        truth: Class numbers, any shape.
        ids: Predicted class numbers, any shape (that of the truth); -1 where the prediction backed off.
        labelled: The pixels that have a label at the level, bool, any shape (that of the truth).
        classes: C, the number of classes.

    Returns:
        C,C+1 pixels by true class and predicted class + 1.
    """
    flat = truth * (classes + 1) + ids + 1
    return _histogram(flat[labelled], classes * (classes + 1)).view(classes, classes + 1)


def _histogram(index: Tensor, size: int) -> Tensor:
    return torch.bincount(index, minlength=size)


def _consistent(ids: Tensor, tree: TreeTensors) -> Tensor:
    """P bool: every level is the parent class of the next finer one, wherever that one isn't -1."""
    agree = torch.ones_like(ids[0], dtype=torch.bool)
    for finer, coarser, parent_class in zip(ids[:-1], ids[1:], tree.parent_class[:-1], strict=True):
        agree &= (finer < 0) | (parent_class[finer.clamp(min=0)] == coarser)
    return agree


def _judged_node(ids: Tensor, label: Tensor, labelled: Tensor, tree: TreeTensors) -> Tensor:
    """P: the deepest predicted node that is not finer than the label, or N, the root."""
    root = len(tree.distance) - 1
    node = torch.full_like(label, root)
    for level in reversed(range(len(ids))):
        predicted = (ids[level] >= 0) & labelled[level]
        node = torch.where(predicted, tree.level_nodes[level][ids[level].clamp(min=0)], node)
    return node
