"""Drawing the augmentation of a sample: random scale, crop, flip and color jitter.

The parameters are drawn first, as `AugmentationParams`, and then applied to the image and the target alike, so the two
always stay aligned. They are drawn from a generator seeded with (seed, epoch, index, repeat) alone: neither the worker
nor the order of the samples matters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from seghiero_core.config.schema import TransformConfig

_HUE_PER_STRENGTH = 0.1  # turns; classes such as sky and grass depend on hue, so it changes least


@dataclass(frozen=True)
class AugmentationParams:
    """The parameters drawn for one sample; lengths in px.

    Attributes:
        box: (top, left, height, width) of the part of the native image that is kept.
        resized: (height, width) of that part after scaling.
        size: (height, width) of the result.
        offset: (top, left) of the scaled part in the result; the rest is padding.
        flip: Whether to mirror left and right.
        brightness, contrast, saturation: Factors; 1 changes nothing.
        hue: Rotation around the color circle, in turns; 0 changes nothing.
    """

    box: tuple[int, int, int, int]
    resized: tuple[int, int]
    size: tuple[int, int]
    offset: tuple[int, int]
    flip: bool
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0


def sample_generator(seed: int, epoch: int, index: int, repeat: int = 0) -> np.random.Generator:
    """Create the random generator of one sample in one epoch.

    Args:
        seed: The run's `training.seed`.
        epoch: The epoch, from 0.
        index: The sample's position in the data set.
        repeat: How often the epoch has drawn it before.

    Returns:
        A generator that depends on these numbers alone.
    """
    return np.random.default_rng((seed, epoch, index, repeat))  # numpy pads with zeros: repeat 0 changes nothing


def draw_augmentation(
    rng: np.random.Generator, native_size: tuple[int, int], transform: TransformConfig
) -> AugmentationParams:
    """Draw the augmentation of one sample.

    The scale is relative to the native size and log-uniform, so doubling the size is as likely as halving it (a uniform
    draw from 0.5..2 would enlarge two times out of three). The scaled image is then cropped at a uniform position, or,
    where it is smaller than the crop, placed at a uniform position inside it.

    Args:
        rng: The sample's generator, from `sample_generator`.
        native_size: (H, W) of the image, in px.
        transform: The config section. A `color_jitter` of j draws brightness, contrast and saturation factors from
            1-j..1+j, and the hue from -j/10..j/10 turns.

    Returns:
        The parameters for `augment_image` and `augment_mask`.
    """
    low, high = transform.scale
    scale = math.exp(rng.uniform(math.log(low), math.log(high)))
    kept, resized, corner, offset = [], [], [], []
    for length, wanted in zip(native_size, transform.size, strict=True):
        keep = min(length, max(1, round(wanted / scale)))
        to = wanted if keep < length else min(wanted, max(1, round(length * scale)))
        kept.append(keep)
        resized.append(to)
        corner.append(int(rng.integers(length - keep + 1)))
        offset.append(int(rng.integers(wanted - to + 1)))
    flip = bool(rng.random() < transform.flip)
    jitter = transform.color_jitter
    brightness, contrast, saturation = rng.uniform(1 - jitter, 1 + jitter, 3).tolist()
    hue = float(rng.uniform(-1, 1)) * jitter * _HUE_PER_STRENGTH
    return AugmentationParams(
        box=(*corner, *kept),
        resized=tuple(resized),
        size=transform.size,
        offset=tuple(offset),
        flip=flip,
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
        hue=hue,
    )
