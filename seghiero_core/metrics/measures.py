"""Measures from counts: plain values from the arrays of `Counts`, None where there is nothing to measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from seghiero_core.metrics.counts import CONFIDENCE_UNIT, CURVE_BINS, INFORMATION_UNIT


def ratio(part: float, whole: float) -> float | None:
    """Divide two counts.

    Args:
        part: How many of `whole`.
        whole: How many there are.

    Returns:
        The fraction, or None if `whole` is 0.
    """
    return float(part) / float(whole) if whole else None


def mean_of_known(values: Sequence[float | None]) -> float | None:
    """Compute the mean of the values that are known.

    Args:
        values: Numbers and None.

    Returns:
        Their mean, or None where all are None.
    """
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def class_ious(confusion: np.ndarray) -> list[float | None]:
    """Compute the IoU of each class of a level.

    Args:
        confusion: C,C+1 pixels by true class and predicted class + 1.

    Returns:
        C fractions in 0..1; None for a class that is neither in the truth nor predicted.
    """
    pixels, predicted, hits = confusion.sum(axis=1), confusion[:, 1:].sum(axis=0), confusion[:, 1:].diagonal()
    return [ratio(hit, total) for hit, total in zip(hits, pixels + predicted - hits, strict=True)]


def level_measures(
    confusion: np.ndarray,
    calibration: np.ndarray,
    boundary: np.ndarray,
    names: Sequence[str],
    background: Sequence[bool] | None,
) -> dict[str, Any]:
    """Compute the measures of a level.

    Args:
        confusion: C,C+1 pixels by true class and predicted class + 1.
        calibration: C,3,ECE_BINS pixels, right ones and summed confidence, by predicted class.
        boundary: 3,C common, true and predicted pixels near contours.
        names: The names of the C classes.
        background: For each class, whether a second mean leaves it out. None: no second mean.

    Returns:
        `miou`, `boundary_miou`, `pixel_accuracy`, `ece`, `classes`, and with `background` also
        `miou_without_background`.
    """
    pixels, ious = confusion.sum(axis=1), class_ious(confusion)
    common, true_near, predicted_near = boundary
    boundary_ious = [ratio(*pair) for pair in zip(common, true_near + predicted_near - common, strict=True)]
    measures = {
        "miou": mean_of_known(ious),
        "boundary_miou": mean_of_known(boundary_ious),
        "pixel_accuracy": ratio(confusion[:, 1:].trace(), pixels.sum()),
        "ece": _calibration_error(calibration.sum(axis=0)),
        "classes": [
            {"name": name, "iou": iou, "boundary_iou": near, "ece": _calibration_error(bins), "pixels": int(count)}
            for name, iou, near, bins, count in zip(names, ious, boundary_ious, calibration, pixels, strict=True)
        ],
    }
    if background is not None:
        kept = [iou for iou, is_background in zip(ious, background, strict=True) if not is_background]
        measures["miou_without_background"] = mean_of_known(kept)
    return measures


def most_confused(confusion: np.ndarray, names: Sequence[str], top: int) -> list[dict[str, Any]]:
    """List the pairs of classes that are confused most.

    Args:
        confusion: C,C+1 pixels by true class and predicted class + 1.
        names: The names of the C classes.
        top: The length of the list at most.

    Returns:
        `truth`, `predicted`, `pixels`, and `share` of the true class's pixels; most pixels first.
    """
    wrong = confusion[:, 1:].copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:top]
    pairs = [np.unravel_index(i, wrong.shape) for i in order]
    return [
        {
            "truth": names[truth],
            "predicted": names[predicted],
            "pixels": int(wrong[truth, predicted]),
            "share": float(wrong[truth, predicted] / confusion[truth].sum()),
        }
        for truth, predicted in pairs
        if wrong[truth, predicted]
    ]


def calibration_bins(calibration: np.ndarray) -> list[dict[str, float | None]]:
    """Compute what a diagram of the calibration shows.

    Args:
        calibration: 3,ECE_BINS pixels, right ones and summed confidence.

    Returns:
        For each bin, from 0 to 1: `confidence` (the mean), `accuracy` and `pixels`; None in an empty bin.
    """
    return [
        {"confidence": ratio(units / CONFIDENCE_UNIT, count), "accuracy": ratio(right, count), "pixels": count}
        for count, right, units in calibration.T.tolist()
    ]


def threshold_curve(curve: np.ndarray) -> list[dict[str, float | None]]:
    """Compute what each threshold on the confidence would do.

    Args:
        curve: L,2,3,CURVE_BINS pixels and information, as `Counts.add_curve` describes.

    Returns:
        One row per threshold; see `Metrics.back_off_curve`.
    """
    levels = len(curve)
    reached = curve[..., ::-1].cumsum(axis=-1)[..., ::-1]  # pixels whose best score is at least the threshold
    stops = reached[:, 0] - reached[:, 1]  # L,(wrong, right, information),CURVE_BINS of those that stop at a level
    information = stops[:, 2].sum(axis=0) / INFORMATION_UNIT
    stops, total = stops[:, :2], curve[0, 0, :2].sum()
    covered, right = stops.sum(axis=(0, 1)), stops[:, 1].sum(axis=0)
    depth = (stops.sum(axis=1) * (levels - np.arange(levels))[:, None]).sum(axis=0)
    return [
        {
            "threshold": i / CURVE_BINS,
            "coverage": ratio(covered[i], total),
            "specificity": ratio(depth[i], covered[i] * levels),
            "information": ratio(information[i], total),
            "accuracy": ratio(right[i], covered[i]),
        }
        for i in range(CURVE_BINS)
    ]


def risk_coverage_area(rows: Sequence[Mapping[str, float | None]]) -> float | None:
    """Compute the area under the curve of risk (the fraction of wrong answers) over coverage, by trapezoids.

    Coverage is `information`, so a coarse class counts as part of an answer, as in Goren et al., "Hierarchical
    Selective Classification" (NeurIPS 2024). Below the least coverage of the rows the risk is that of their last
    answer.

    Args:
        rows: What `threshold_curve` returns.

    Returns:
        The area in 0..1, lower is better; None where nothing was counted.
    """
    points = sorted((row["information"], 1 - row["accuracy"]) for row in rows if row["accuracy"] is not None)
    if not points:
        return None
    coverage, risk = np.array([(0.0, points[0][1]), *points]).T
    return float((np.diff(coverage) * (risk[1:] + risk[:-1]) / 2).sum())


def _calibration_error(calibration: np.ndarray) -> float | None:
    """The expected calibration error: the mean over pixels of |accuracy - confidence| of their bin.

    Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017, eq. 3).
    """
    count, right, confidence = calibration
    return ratio(np.abs(right - confidence / CONFIDENCE_UNIT).sum(), count.sum())
