"""Class weights from the pixel counts of a training set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CLASS_WEIGHTS = ("auto", "median_frequency")


def class_weights(counts: np.ndarray, how: str | Sequence[float]) -> np.ndarray:
    """Weights of the leaves (K floats) from their pixel counts in the training set (K int64).

    "auto" is 1 / log(1.02 + frequency), bounded for rare classes (Paszke et al., ENet, 2016), divided by its mean;
    "median_frequency" is median frequency / frequency over the classes that occur (Eigen & Fergus, ICCV 2015), 1 for
    those that do not. A sequence is taken as it is.
    """
    if not isinstance(how, str):
        return np.asarray(how, dtype=np.float64)
    counts = np.asarray(counts, dtype=np.float64)
    frequency = counts / max(counts.sum(), 1)
    if how == "auto":
        weights = 1 / np.log(1.02 + frequency)
        return weights / weights.mean()
    weights = np.ones_like(frequency)
    present = counts > 0
    if present.any():
        weights[present] = np.median(frequency[present]) / frequency[present]
    return weights
