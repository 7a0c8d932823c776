"""Class weights from the pixel counts of a training set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from seghiero_core.errors import nearest

CLASS_WEIGHTS = ("auto", "median_frequency")


def class_weights(counts: np.ndarray, how: str | Sequence[float]) -> np.ndarray:
    """Compute the weights of the leaves.

    Args:
        counts: (K) pixels of each leaf in the training set.
        how: "auto" for 1 / log(1.02 + frequency), which stays bounded for rare classes (Paszke et al., ENet, 2016),
            divided by its mean; "median_frequency" for median frequency / frequency over the classes that occur
            (Eigen & Fergus, ICCV 2015), and 1 for those that do not; or the K weights themselves.

    Returns:
        (K) float64 weights. The losses take them as a tensor: `torch.from_numpy(weights).float()`.

    Raises:
        ValueError: When `how` is another word.

    Example:
        >>> class_weights(np.array([100, 300, 600, 0]), "median_frequency")
        array([3. , 1. , 0.5, 1. ])
    """
    if not isinstance(how, str):
        return np.asarray(how, dtype=np.float64)
    if how not in CLASS_WEIGHTS:
        raise ValueError(
            f"unknown class weights '{how}'.{nearest(how, CLASS_WEIGHTS)} Known: {', '.join(CLASS_WEIGHTS)}."
        )
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
