"""Joint augmentation of an image and its target: random scale, crop, flip and color jitter.

The parameters are drawn first, as `AugmentationParams`, and then applied to the image and the target alike, so the two
always stay aligned. They are drawn from a generator seeded with (seed, epoch, index, repeat) alone: neither the worker
nor the order of the samples matters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from seghiero_core.config.schema import TransformConfig
from seghiero_core.hierarchy.tree import IGNORE_INDEX
from seghiero_core.readers import Bands

PAD_RGB = (124, 116, 104)
"""The mean color of ImageNet: close to zero after the normalization of every backbone."""

_LUMA = np.array([0.299, 0.587, 0.114])
# RGB to YIQ (ITU-R BT.601 luma, NTSC chroma). Rotating the I-Q plane changes the hue and keeps the luma.
_RGB_TO_YIQ = np.array([_LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_YIQ_TO_RGB = np.linalg.inv(_RGB_TO_YIQ)
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
        The parameters for `augment_image` and `augment_target`.
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


def augment_image(image: Tensor, params: AugmentationParams, bands: Bands | None = None) -> Tensor:
    """Apply an augmentation to an image: bilinear with antialiasing, padded with `PAD_RGB` or NaN.

    Args:
        image: 3,H,W uint8 RGB; with `bands` C,H,W uint8 or float32, NaN where there is no data.
        params: The augmentation, drawn for an image of this size.
        bands: What the channels are; colors change in its red, green and blue only. Default: RGB.

    Returns:
        3,h,w uint8 RGB of `params.size`, contiguous; with `bands` C,h,w float32, whose padding has no data.
    """
    top, left, height, width = params.box
    part = image[:, top : top + height, left : left + width]
    if params.resized != (height, width):
        part = resize_with_gaps(part, params.resized)
    if bands is None:
        part = jitter_color(part, params)
    elif bands.rgb:
        part, rgb = part.clone(), list(bands.rgb)
        part[rgb] = jitter_color(part[rgb], params)
    if params.flip:
        part = F.horizontal_flip(part)
    if bands is not None:
        part = part.float()
    if params.resized == params.size:
        return part.contiguous()
    if bands is not None:
        return _paste(torch.full((len(part), *params.size), torch.nan), part, params)
    canvas = torch.tensor(PAD_RGB, dtype=torch.uint8).view(3, 1, 1).repeat(1, *params.size)
    return _paste(canvas, part, params)


def resize_with_gaps(image: Tensor, size: Sequence[int]) -> Tensor:
    """Resize an image, bilinear with antialiasing, so that pixels without data don't spread.

    Args:
        image: ...,C,H,W uint8, or floats that are NaN in all channels where there is no data.
        size: The new (h, w), px.

    Returns:
        ...,C,h,w of the same dtype: the weighted mean of the pixels with data, NaN where they are less than half.
    """
    resize = partial(F.resize, size=list(size), interpolation=InterpolationMode.BILINEAR, antialias=True)
    if not image.is_floating_point():
        return resize(image)
    absent = image[..., :1, :, :].isnan()
    if not absent.any():
        return resize(image)
    covered = resize((~absent).to(image.dtype))
    values = resize(image.nan_to_num(0.0)) / covered.clamp(min=0.5)
    return values.masked_fill(covered < 0.5, torch.nan)


def augment_target(target: Tensor, params: AugmentationParams) -> Tensor:
    """Apply an augmentation to a target: nearest neighbor at pixel centers, padded with `IGNORE_INDEX`.

    Args:
        target: H,W node indices of any integer dtype.
        params: The augmentation that the image got.

    Returns:
        h,w node indices of `params.size` and the dtype of `target`, contiguous.
    """
    top, left, height, width = params.box
    part = target[top : top + height, left : left + width]
    if params.resized != (height, width):
        part = F.resize(part[None], list(params.resized), interpolation=InterpolationMode.NEAREST_EXACT)[0]
    if params.flip:
        part = F.horizontal_flip(part)
    if params.resized == params.size:
        return part.contiguous()
    return _paste(torch.full(params.size, IGNORE_INDEX, dtype=target.dtype), part, params)


def jitter_color(image: Tensor, params: AugmentationParams) -> Tensor:
    """Change brightness, contrast (about the mean luma), saturation and hue, and clamp once at the end.

    All four are affine in RGB, so together they are one 3x3 matrix and an offset, which is several times faster than
    applying one after the other. The sums are written out so that the result does not depend on the number of threads.
    Floats, which have no highest value, are not clamped.

    Args:
        image: 3,H,W RGB, uint8, or float32 where 0 is black and NaN means no data.
        params: The augmentation; only its color parameters are used.

    Returns:
        3,H,W RGB of the same dtype; `image` itself where nothing changes.
    """
    if (params.brightness, params.contrast, params.saturation, params.hue) == (1, 1, 1, 0):
        return image
    angle = 2 * math.pi * params.hue
    turn = np.array([[1, 0, 0], [0, math.cos(angle), -math.sin(angle)], [0, math.sin(angle), math.cos(angle)]])
    saturate = params.saturation * np.eye(3) + (1 - params.saturation) * np.ones((3, 1)) * _LUMA
    # Hue and saturation leave gray unchanged, so the offset that contrast adds to every channel passes through them.
    matrix = params.brightness * params.contrast * (_YIQ_TO_RGB @ turn @ _RGB_TO_YIQ @ saturate)
    offset = (1 - params.contrast) * params.brightness * float(_LUMA @ _mean_color(image))
    red, green, blue = image.float()
    rows = [float(r) * red + float(g) * green + float(b) * blue for r, g, b in matrix]
    if image.is_floating_point():
        return torch.stack(rows).add_(offset)
    return torch.stack(rows).add_(offset + 0.5).clamp_(0, 255).to(torch.uint8)


def _mean_color(image: Tensor) -> np.ndarray:
    """The mean of each channel of C,H,W over the pixels with data, the same on any number of threads."""
    if not image.is_floating_point():
        return image.sum(dim=(1, 2), dtype=torch.int64).numpy() / image[0].numel()  # integers: exact in any order
    pixels = image.numpy()[:, ~np.isnan(image[0].numpy())]
    return pixels.mean(axis=1, dtype=np.float64) if pixels.size else np.zeros(len(pixels))


def _paste(canvas: Tensor, part: Tensor, params: AugmentationParams) -> Tensor:
    (top, left), (height, width) = params.offset, params.resized
    canvas[..., top : top + height, left : left + width] = part
    return canvas
