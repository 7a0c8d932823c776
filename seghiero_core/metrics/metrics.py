"""What a model gets right, level by level, from counts over a whole set.

Everything counted is a whole number in one flat int64 tensor, so that a set of any size is exact, processes are
reduced by adding their `counts`, and no mean is ever taken of a batch's means.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seghiero_core.decode import Decoded, back_off
from seghiero_core.hierarchy.tensors import TreeTensors, tree_tensors
from seghiero_core.hierarchy.tree import IGNORE_INDEX, Hierarchy

ECE_BINS = 15
CURVE_BINS = 100
_UNIT = 2**20  # a confidence of 1 in the whole numbers that are summed


class Metrics:
    """Counts decoded predictions against targets, and computes the measures of a whole set from them.

    `counts` is the whole state, one int64 tensor; adding those of two sets gives that of both. It moves to the device
    of what it is fed. A label at an inner node counts at its level and at coarser ones, and nowhere against its
    children. A prediction that backed off (-1) is a miss at the levels that it leaves open.
    """

    def __init__(self, hierarchy: Hierarchy, *, background: str | None = None):
        """`background` names a class (or node) that a second mean leaves out."""
        self.hierarchy = hierarchy
        self.background = background
        self._shapes: dict[str, tuple[int, ...]] = {}
        levels = len(hierarchy.levels)
        for number, level in enumerate(hierarchy.levels):
            self._shapes[f"confusion{number}"] = (len(level.nodes), len(level.nodes) + 1)  # truth, prediction + 1
        self._shapes["calibration"] = (levels, 3, ECE_BINS)  # pixels, right ones, summed confidence in _UNIT
        self._shapes["curve"] = (levels, 2, 2, CURVE_BINS)  # see _count_curve
        self._shapes["pixels"] = (5,)  # valid, consistent, whole path right, mistaken, summed tree distance
        self.counts = torch.zeros(sum(math.prod(shape) for shape in self._shapes.values()), dtype=torch.int64)

    def part(self, name: str) -> Tensor:
        """A view of one part of `counts`, in its shape."""
        start = 0
        for key, shape in self._shapes.items():
            if key == name:
                return self.counts[start : start + math.prod(shape)].view(shape)
            start += math.prod(shape)
        raise KeyError(name)

    def state(self) -> Tensor:
        """A copy of `counts`."""
        return self.counts.clone()

    def load_state(self, counts: Tensor) -> None:
        """Take over the (for example reduced) counts of a Metrics of the same hierarchy."""
        if counts.shape != self.counts.shape:
            raise ValueError(f"expected {len(self.counts)} counts for this tree, found {tuple(counts.shape)}")
        self.counts = counts.to(torch.int64).clone()

    @torch.no_grad()
    def update(
        self,
        decoded: Decoded,
        target: Tensor,
        *,
        confidence: float | None = None,
        ignore_index: int = IGNORE_INDEX,
    ) -> None:
        """Count a batch; `target` is B,H,W of node indices or `ignore_index`, of the size of the decoded maps.

        With `confidence`, a threshold in 0..1, what is counted is what `back_off` makes of the prediction; only the
        curve of thresholds is that of the prediction as it came.
        """
        self.counts = self.counts.to(target.device)
        tree = tree_tensors(self.hierarchy, target.device)
        valid = target != ignore_index
        label = target[valid]
        decoded = Decoded(*(tuple(of_level[valid] for of_level in part) for part in decoded))
        truth, labelled = tree.class_of[:, label], tree.labelled[:, label]  # L,P from here on
        of_leaves = labelled[0]
        self._count_curve(
            torch.stack(decoded.confidence)[:, of_leaves], (truth == torch.stack(decoded.ids))[:, of_leaves]
        )
        if confidence is not None:
            decoded = back_off(decoded, confidence)
        ids, score = torch.stack(decoded.ids), torch.stack(decoded.confidence)
        right = truth == ids
        for number, level in enumerate(self.hierarchy.levels):
            known = labelled[number]
            columns = len(level.nodes) + 1
            self._count(f"confusion{number}", (truth[number] * columns + ids[number] + 1)[known])
        self._count_calibration(score, right, labelled & (ids >= 0))
        distance = _distance(ids, label, labelled, tree)
        path_right = (right | ~labelled).all(dim=0)
        consistent = _consistent(ids, tree.parent_class)
        totals = (valid, consistent, path_right, distance > 0, distance)
        self.part("pixels").add_(torch.stack([total.sum() for total in totals]))

    def compute(self) -> dict[str, Any]:
        """The measures as plain values, fractions in 0..1, the leaves' level first.

        A class that is neither in the truth nor predicted has an IoU of None and is left out of its level's mean.
        """
        valid, consistent, path_right, mistaken, distance = self.part("pixels").tolist()
        return {
            "levels": [self._level(number) for number in range(len(self.hierarchy.levels))],
            "pixels": valid,
            "consistency": _ratio(consistent, valid),
            "full_path_accuracy": _ratio(path_right, valid),
            "mean_tree_distance": _ratio(distance, valid),
            "mean_tree_distance_of_mistakes": _ratio(distance, mistaken),
        }

    def worst_confusions(self, level: int = 0, top: int = 10) -> list[dict[str, Any]]:
        """The pairs of classes that are taken for each other most, as shares of the true class's pixels."""
        matrix = self.part(f"confusion{level}").cpu().numpy()
        names = self.hierarchy.level_names(level)
        wrong = matrix[:, 1:].copy()
        np.fill_diagonal(wrong, 0)
        order = np.argsort(-wrong, axis=None, kind="stable")[:top]
        pairs = [np.unravel_index(i, wrong.shape) for i in order]
        return [
            {
                "truth": names[t],
                "predicted": names[p],
                "pixels": int(wrong[t, p]),
                "share": float(wrong[t, p] / matrix[t].sum()),
            }
            for t, p in pairs
            if wrong[t, p]
        ]

    def back_off_curve(self) -> list[dict[str, float | None]]:
        """What a threshold on the confidence would do, for thresholds of 0, 0.01, ... 0.99, over leaf-labelled pixels.

        Only for predictions that were decoded without a threshold; `update` may have been given one.

        Per threshold: `coverage`, the share of pixels that get a node at all; `specificity`, the mean share of levels
        that they get (1 where it is a leaf); `accuracy`, the share of the covered whose node is right.
        """
        curve = self.part("curve").cpu().numpy()
        levels = len(curve)
        reached = curve[..., ::-1].cumsum(axis=-1)[..., ::-1]  # pixels whose best score so far is >= the threshold
        here, finer = reached[:, 0], reached[:, 1]
        stops = here - finer  # levels, (wrong, right), thresholds: pixels that stop at this level
        total = curve[0, 0].sum()
        covered, right = stops.sum(axis=(0, 1)), stops[:, 1].sum(axis=0)
        depth = (stops.sum(axis=1) * (levels - np.arange(levels))[:, None]).sum(axis=0)
        return [
            {
                "threshold": i / CURVE_BINS,
                "coverage": _ratio(covered[i], total),
                "specificity": _ratio(depth[i], covered[i] * levels),
                "accuracy": _ratio(right[i], covered[i]),
            }
            for i in range(CURVE_BINS)
        ]

    def _level(self, number: int) -> dict[str, Any]:
        matrix = self.part(f"confusion{number}").cpu().numpy()
        names = self.hierarchy.level_names(number)
        pixels, predicted, hits = matrix.sum(axis=1), matrix[:, 1:].sum(axis=0), matrix[:, 1:].diagonal()
        union = pixels + predicted - hits
        ious = [_ratio(hit, total) for hit, total in zip(hits, union, strict=True)]
        measures = {
            "name": self.hierarchy.levels[number].name,
            "miou": _mean(ious),
            "pixel_accuracy": _ratio(hits.sum(), pixels.sum()),
            "ece": self._ece(number),
            "classes": [
                {"name": name, "iou": iou, "pixels": int(count)}
                for name, iou, count in zip(names, ious, pixels, strict=True)
            ],
        }
        if self.background is not None:
            kept = [iou for name, iou in zip(names, ious, strict=True) if name != self.background]
            measures["miou_without_background"] = _mean(kept)
        return measures

    def _ece(self, number: int) -> float | None:
        """Expected calibration error: mean over pixels of |accuracy - confidence| of their bin (Guo et al. 2017)."""
        count, right, confidence = self.part("calibration")[number].cpu().numpy()
        return _ratio(np.abs(right - confidence / _UNIT).sum(), count.sum())

    def _count(self, name: str, flat: Tensor) -> None:
        part = self.part(name)
        part.view(-1).add_(torch.bincount(flat, minlength=part.numel()))

    def _count_calibration(self, confidence: Tensor, right: Tensor, counted: Tensor) -> None:
        bins = (confidence * ECE_BINS).ceil().long().sub_(1).clamp_(0, ECE_BINS - 1)  # bins are open below
        units = (confidence.float() * _UNIT).round().long()  # exact: a power of two, below float32's 24 bits
        for number, part in enumerate(self.part("calibration")):
            keep = counted[number]
            index = bins[number][keep]
            part[0].add_(torch.bincount(index, minlength=ECE_BINS))
            part[1].add_(torch.bincount(index[right[number][keep]], minlength=ECE_BINS))
            part[2].index_add_(0, index, units[number][keep])

    def _count_curve(self, confidence: Tensor, right: Tensor) -> None:
        """Histograms of the best score so far, going up; by whether the level is right.

        A pixel stops at level l for thresholds in (best up to l-1, best up to l], so the second histogram holds the
        best score up to l-1 by whether level l is right, and the difference of the two counts who stops here.
        """
        best = confidence.cummax(dim=0).values
        bins = (best * CURVE_BINS).long().clamp_(0, CURVE_BINS - 1)
        for level, part in enumerate(self.part("curve")):
            for which, source in enumerate((level, level - 1)[: 2 if level else 1]):
                index = right[level].long() * CURVE_BINS + bins[source]
                part[which].view(-1).add_(torch.bincount(index, minlength=2 * CURVE_BINS))


def _consistent(ids: Tensor, above: tuple[Tensor, ...]) -> Tensor:
    """P of bool: every level is the parent class of the level below it, or that one was left open."""
    agree = torch.ones_like(ids[0], dtype=torch.bool)
    for finer, coarser, of_class in zip(ids, ids[1:], above, strict=False):
        agree &= (finer < 0) | (of_class[finer.clamp(min=0)] == coarser)
    return agree


def _distance(ids: Tensor, label: Tensor, labelled: Tensor, tree: TreeTensors) -> Tensor:
    """P: edges from the label to the deepest predicted node that is not finer than it, the root if none is."""
    node = torch.full_like(label, len(tree.distance) - 1)
    for of_level, known, nodes in reversed(list(zip(ids, labelled, tree.level_nodes, strict=True))):
        node = torch.where((of_level >= 0) & known, nodes[of_level.clamp(min=0)], node)
    return tree.distance[node, label]


def _ratio(part: float, whole: float) -> float | None:
    return float(part) / float(whole) if whole else None


def _mean(values: list[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None
