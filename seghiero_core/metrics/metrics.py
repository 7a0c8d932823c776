"""How good predictions are, level by level, over a whole set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seghiero_core.decode import Decoded, back_off
from seghiero_core.errors import nearest
from seghiero_core.hierarchy.tree import IGNORE_INDEX, Hierarchy
from seghiero_core.metrics.counts import Counts
from seghiero_core.metrics.measures import (
    calibration_bins,
    level_measures,
    most_confused,
    ratio,
    risk_coverage_area,
    threshold_curve,
)
from seghiero_core.metrics.predictions import valid_pixels


class Metrics:
    """Count predictions against targets, batch by batch, and compute the measures of the whole set.

    A label at an inner node counts at its level and at coarser ones, and never against its children. A label that is a
    set of leaves counts at the levels where all of them share a class. A prediction that
    backed off (-1) is a miss at the levels that it leaves open.

    The whole state is one tensor, `counts`, on the device of the last target. To combine processes or sets, add their
    counts and pass the sum to `load_state`.

    Args:
        hierarchy: The class tree.
        background: The name of a node that a second mean IoU leaves out, with the classes below it, and those above it
            that have no other leaves.

    Raises:
        ValueError: When there is no such class.

    Example:
        >>> hierarchy = Hierarchy.from_config(
        ...     {"labels": ["sky", "car", "bus"], "tree": {"sky": None, "vehicle": ["car", "bus"]}}
        ... )
        >>> metrics = Metrics(hierarchy)
        >>> metrics.update(torch.tensor([[[0, 1, 1, 1]]]), torch.tensor([[[0, 1, 2, IGNORE_INDEX]]]))
        >>> measures = metrics.compute()
        >>> [(level["name"], level["miou"]) for level in measures["levels"]]
        [('leaf', 0.5), ('level1', 1.0)]
        >>> round(measures["mean_tree_distance"], 3)  # a bus taken for a car is two edges away
        0.667
    """

    def __init__(self, hierarchy: Hierarchy, *, background: str | None = None) -> None:
        if background is not None and background not in hierarchy.nodes:
            raise ValueError(f"unknown background class '{background}'.{nearest(background, hierarchy.nodes)}")
        self.hierarchy = hierarchy
        self.background = background
        self._counts = Counts(hierarchy)

    @property
    def counts(self) -> Tensor:
        """The whole state, one flat int64 tensor. Shared, not copied."""
        return self._counts.values

    def state(self) -> Tensor:
        """Copy the state.

        Returns:
            The counts, (S) int64; S depends on the tree only.
        """
        return self.counts.clone()

    def load_state(self, counts: Tensor) -> None:
        """Replace the state, for example by a sum over processes.

        Args:
            counts: The (S) counts of metrics of the same tree.

        Raises:
            ValueError: When the number of counts is another one.
        """
        if counts.shape != self.counts.shape:
            raise ValueError(f"expected {len(self.counts)} counts for this tree, found the shape {tuple(counts.shape)}")
        self._counts.values = counts.to(torch.int64).clone()

    @torch.no_grad()
    def update(
        self,
        prediction: Decoded | Any | Sequence[Any] | Mapping[str, Any],
        target: Any,
        *,
        confidence: float | None = None,
        ignore_index: int = IGNORE_INDEX,
    ) -> None:
        """Count a batch.

        Maps are tensors or arrays of integers, of the same shape as the target: B,H,W, or any other. A target of one
        dimension has no contours and doesn't count for boundary IoU.

        Args:
            prediction: What `decode` returns; or one map of leaves (positions in `hierarchy.leaves`), from which the
                coarser levels follow; or a map of class numbers for every level, as a list or tuple (finest first) or
                as a mapping from level name. -1 stands for no class. Only `decode` gives confidences: without them,
                pixels don't count for the calibration error and the curve of thresholds.
            target: B,H,W node indices or `ignore_index`, as a tensor or an array.
            confidence: A threshold in 0..1: what `back_off` makes of the prediction is counted. The curve of
                thresholds is always that of the prediction without it.
            ignore_index: What ignored pixels have in the target.

        Raises:
            ValueError: When the prediction and the target differ in size, when values are neither nodes or classes of
                the tree nor ignored, when maps aren't integers or are not one per level, or when there is a threshold
                and the prediction has no confidences.
        """
        ids, scores, label, valid = valid_pixels(prediction, target, self.hierarchy, ignore_index)
        self._counts.values = self._counts.values.to(label.device)
        if scores is not None:
            self._counts.add_curve(ids, scores, label)
        if confidence is not None:
            if scores is None:
                raise ValueError("a threshold needs a prediction with confidences, from `decode`; these are maps")
            ids = torch.stack(back_off(Decoded(tuple(ids), tuple(scores)), confidence).ids)
        self._counts.add_predictions(ids, label)
        if valid.ndim > 1:
            self._counts.add_boundaries(ids, label, valid)
        if scores is not None:
            self._counts.add_calibration(ids, scores, label)

    def compute(self) -> dict[str, Any]:
        """Compute the measures of everything counted so far.

        Returns:
            Plain values; fractions are in 0..1, and None where there is nothing to measure.

            - `levels`: for each level, finest first: `name`, `miou`, `boundary_miou` (of the pixels near contours
              alone, see `boundary_band`), `pixel_accuracy`, `ece` (expected calibration error; None without
              confidences), `classes` (`name`, `iou`, `boundary_iou`, `ece` of the pixels predicted as the class, and
              number of true `pixels`), and with a background also `miou_without_background`. A class that is neither
              in the truth nor predicted has an IoU of None and isn't part of the mean.
            - `pixels`: the number of valid pixels.
            - `consistency`: the fraction of pixels at which every level is the parent of the finer one.
            - `full_path_accuracy`: the fraction of pixels that are right at every level that has a label.
            - `mean_tree_distance`: the mean number of edges from the prediction to the label.
            - `mean_tree_distance_of_mistakes`: the same over wrong pixels alone.
            - `mistakes_by_common_ancestor`: the fraction of the wrong pixels whose prediction and label have their
              lowest common ancestor at depth 0 (the root), 1, ...: a mistake deep in the tree is a mild one. A class
              above the label is not a mistake.
        """
        valid, consistent, path_right, mistaken, distance = self._counts.part("pixels").tolist()
        by_depth = self._counts.part("common_ancestor").tolist()
        return {
            "levels": [self._level(number) for number in range(len(self.hierarchy.levels))],
            "pixels": valid,
            "consistency": ratio(consistent, valid),
            "full_path_accuracy": ratio(path_right, valid),
            "mean_tree_distance": ratio(distance, valid),
            "mean_tree_distance_of_mistakes": ratio(distance, mistaken),
            "mistakes_by_common_ancestor": [ratio(count, sum(by_depth)) for count in by_depth],
        }

    def confusion(self, level: int = 0) -> np.ndarray:
        """Return the confusion matrix of a level.

        Args:
            level: Position in `hierarchy.levels`; 0 is the leaves.

        Returns:
            C,C+1 int64 pixels by true class and predicted class + 1; column 0 counts predictions that backed off.

        Raises:
            ValueError: When there is no such level.
        """
        levels = len(self.hierarchy.levels)
        if not 0 <= level < levels:
            raise ValueError(f"level must be from 0 (the leaves) to {levels - 1}, found {level}")
        return self._counts.part(f"confusion{level}").cpu().numpy()

    def worst_confusions(self, level: int = 0, top: int = 10) -> list[dict[str, Any]]:
        """List the pairs of classes of a level that are confused most.

        Args:
            level: Position in `hierarchy.levels`; 0 is the leaves.
            top: The length of the list at most.

        Returns:
            `truth`, `predicted`, `pixels`, and `share` of the true class's pixels; most pixels first.

        Raises:
            ValueError: When there is no such level.
        """
        return most_confused(self.confusion(level), self.hierarchy.level_names(level), top)

    def calibration(self, level: int = 0) -> list[dict[str, float | None]]:
        """Compute what a diagram of the calibration of a level shows.

        Args:
            level: Position in `hierarchy.levels`; 0 is the leaves.

        Returns:
            For each of 15 equally wide bins of the confidence: `confidence` (the mean), `accuracy` and `pixels`; None
            in a bin without pixels.

        Raises:
            KeyError: When there is no such level.
        """
        return calibration_bins(self._counts.part(f"calibration{level}").sum(dim=0).cpu().numpy())

    def back_off_curve(self) -> list[dict[str, float | None]]:
        """Compute what a threshold on the confidence would do, over pixels that are labeled with a leaf.

        It is right for predictions that were decoded without a threshold.

        Returns:
            For thresholds of 0, 0.01, ... 0.99: `threshold`; `coverage`, the fraction of pixels that get any class;
            `specificity`, the mean fraction of levels that these get (1 for a leaf); `information`, the mean over all
            pixels of how far their class narrows down the leaf (1 for a leaf, 0 for no class, see
            `TreeTensors.information`); `accuracy`, the fraction of the covered pixels whose deepest class is right.
            None where there is nothing to count.
        """
        return threshold_curve(self._counts.part("curve").cpu().numpy())

    def back_off_area(self) -> float | None:
        """Compute the area under the risk-coverage curve of the thresholds, see `risk_coverage_area`.

        Returns:
            The area in 0..1, lower is better; None where nothing was counted.
        """
        return risk_coverage_area(self.back_off_curve())

    def _level(self, number: int) -> dict[str, Any]:
        calibration = self._counts.part(f"calibration{number}").cpu().numpy()
        boundary = self._counts.part(f"boundary{number}").cpu().numpy()
        names = self.hierarchy.level_names(number)
        measures = level_measures(self.confusion(number), calibration, boundary, names, self._is_background(number))
        return {"name": self.hierarchy.levels[number].name, **measures}

    def _is_background(self, number: int) -> list[bool] | None:
        """For each class of a level, whether all of its leaves are background."""
        if self.background is None:
            return None
        leaves = self.hierarchy.covers[:, : len(self.hierarchy.leaves)]
        others = ~leaves[self.hierarchy.index_of(self.background)]
        return [not (leaves[node] & others).any() for node in self.hierarchy.levels[number].nodes]
