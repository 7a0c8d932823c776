"""The images that an export is calibrated and checked on: those of the run's data set, or random ones."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from seghiero_core.checkpoint import Checkpoint
from seghiero_core.data.samples import Sample, evenly_spaced, split_samples
from seghiero_core.errors import DataError

CALIBRATION_IMAGES = 32
PARITY_IMAGES = 3
PARITY_SIZES = ((97, 131), (256, 320), (512, 512))
"""H, W (px) to compare random images at."""
MAX_PARITY_SIDE = 1024
"""Validation images are compared at up to this size (px per side)."""


class ParityImages(NamedTuple):
    """Images to compare a file and its network on.

    Attributes:
        images: H,W,3 uint8 each, or H,W,N as `Sample.decode` returns them.
        sizes: The sizes (H, W) to crop or extend them to.
        source: "validation" or "random".
    """

    images: list[np.ndarray]
    sizes: list[tuple[int, int]]
    source: str


def available_samples(checkpoint: Checkpoint, split: str) -> list[Sample]:
    """List the samples of a split of the data set a run was trained on.

    Args:
        checkpoint: A checkpoint of the run.
        split: "train" or "val".

    Returns:
        The samples; none if the data set isn't there or doesn't fit the config.
    """
    try:
        return split_samples(checkpoint.config.dataset, split)
    except DataError:
        return []


def parity_images(checkpoint: Checkpoint) -> ParityImages:
    """Choose images to compare a file and its network on.

    Args:
        checkpoint: The exported checkpoint.

    Returns:
        Validation images near their own size, or random images at PARITY_SIZES if the data set is missing.
    """
    samples = evenly_spaced(available_samples(checkpoint, "val"), PARITY_IMAGES)
    if samples:
        images = [sample.decode()[0] for sample in samples]
        return ParityImages(images, _natural_sizes(images[0]), "validation")
    rng, dataset = np.random.default_rng(0), checkpoint.config.dataset
    if dataset.channels:
        size = (PARITY_IMAGES, 256, 320, dataset.channels)
        noise = rng.normal(dataset.mean, dataset.std, size).astype(np.float32)
    else:
        noise = rng.integers(0, 256, (PARITY_IMAGES, 256, 320, 3), dtype=np.uint8)
    return ParityImages(list(noise), list(PARITY_SIZES), "random")


def calibration_images(checkpoint: Checkpoint) -> list[np.ndarray]:
    """Read the images that an 8-bit export is calibrated on.

    Args:
        checkpoint: The exported checkpoint.

    Returns:
        CALIBRATION_IMAGES training images, as in `ParityImages`, spread evenly over the set.

    Raises:
        DataError: The training or validation images are missing.
    """
    samples = available_samples(checkpoint, "train")
    if not samples or not available_samples(checkpoint, "val"):
        raise DataError(
            "--int8 is calibrated on the run's training images and checked on its validation images, and "
            f"{checkpoint.config.dataset.root} no longer has them. Restore the data set, or export without --int8."
        )
    return [sample.decode()[0] for sample in evenly_spaced(samples, CALIBRATION_IMAGES)]


def _natural_sizes(image: np.ndarray) -> list[tuple[int, int]]:
    """Three sizes (H, W) near that of an image, since a network amplifies rounding far from what it was trained on.

    The image's own size (up to MAX_PARITY_SIDE), three quarters of it made odd, and half of it.
    """
    height, width = (min(side, MAX_PARITY_SIDE) for side in image.shape[:2])
    return [
        (height, width),
        (3 * height // 4 | 1, 3 * width // 4 | 1),
        ((height + 1) // 2, (width + 1) // 2),
    ]
