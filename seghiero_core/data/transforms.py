"""Joint augmentation of an image and its target: random scale, crop, flip, colour jitter.

What is done is drawn first, as an `Augmentation`, and then applied to image and target alike, so that the two can't
drift apart. Drawing takes a generator made from (seed, epoch, index) alone: neither the worker nor the order matters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from seghiero_core.hierarchy.tree import IGNORE_INDEX

PAD_RGB = (124, 116, 104)
"""The mean colour of ImageNet: near zero after the normalisation of every backbone."""

LUMA = np.array([0.299, 0.587, 0.114])
# RGB to YIQ (ITU-R BT.601 luma, NTSC chroma). Turning I and Q by an angle turns the hue and leaves luma alone.
RGB_TO_YIQ = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
YIQ_TO_RGB = np.linalg.inv(RGB_TO_YIQ)
HUE_PER_STRENGTH = 0.1  # of a turn; labels such as sky and grass lean on hue, so it moves least


@dataclass(frozen=True)
class Augmentation:
    """What to do to one sample; lengths in px.

    Attributes:
        box: (top, left, height, width) of the part of the native image that is kept.
        resized: (height, width) of that part after scaling.
        size: (height, width) of the result.
        offset: (top, left) of the scaled part in the result; the rest is padding.
        flip: mirror left and right.
        brightness, contrast, saturation: factors, 1 changes nothing.
        hue: of a turn around the colour circle, 0 changes nothing.
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


def sample_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of one sample in one epoch."""
    return np.random.default_rng((seed, epoch, index))


def draw_augmentation(
    rng: np.random.Generator,
    native: tuple[int, int],
    *,
    size: tuple[int, int],
    scale: tuple[float, float] = (0.5, 2.0),
    flip: float = 0.5,
    color_jitter: float = 0.3,
) -> Augmentation:
    """Draw what to do with an image of `native` (H, W).

    The scale is relative to the native size and log-uniform, so that twice as large is as likely as half as large (a
    uniform draw from 0.5..2 would enlarge two times out of three). Then a crop of `size` (H, W) at a uniform position;
    where the scaled image is smaller than that, it lies at a uniform position inside.

    Args:
        flip: probability.
        color_jitter: strength j in 0..1: brightness, contrast and saturation factors in 1-j..1+j, hue within j/10.
    """
    factor = math.exp(rng.uniform(math.log(scale[0]), math.log(scale[1])))
    kept, resized, corner, offset = [], [], [], []
    for length, wanted in zip(native, size, strict=True):
        keep = min(length, max(1, round(wanted / factor)))
        to = wanted if keep < length else min(wanted, max(1, round(length * factor)))
        kept.append(keep)
        resized.append(to)
        corner.append(int(rng.integers(length - keep + 1)))
        offset.append(int(rng.integers(wanted - to + 1)))
    flipped = bool(rng.random() < flip)
    brightness, contrast, saturation = rng.uniform(1 - color_jitter, 1 + color_jitter, 3).tolist()
    hue = float(rng.uniform(-1, 1)) * color_jitter * HUE_PER_STRENGTH
    return Augmentation(
        (*corner, *kept), tuple(resized), tuple(size), tuple(offset), flipped, brightness, contrast, saturation, hue
    )


def augment_image(image: Tensor, how: Augmentation) -> Tensor:
    """3,H,W uint8 to 3,h,w uint8 of `how.size`; bilinear with antialiasing, padded with `PAD_RGB`."""
    top, left, height, width = how.box
    part = image[:, top : top + height, left : left + width]
    if how.resized != (height, width):
        part = F.resize(part, list(how.resized), interpolation=InterpolationMode.BILINEAR, antialias=True)
    part = jitter_color(part, how)
    if how.flip:
        part = F.horizontal_flip(part)
    if how.resized == how.size:
        return part.contiguous()
    canvas = torch.tensor(PAD_RGB, dtype=torch.uint8).view(3, 1, 1).repeat(1, *how.size)
    return _paste(canvas, part, how)


def augment_target(target: Tensor, how: Augmentation) -> Tensor:
    """H,W integer node indices to h,w of `how.size`; nearest (pixel centres aligned), padded with IGNORE_INDEX."""
    top, left, height, width = how.box
    part = target[top : top + height, left : left + width]
    if how.resized != (height, width):
        part = F.resize(part[None], list(how.resized), interpolation=InterpolationMode.NEAREST_EXACT)[0]
    if how.flip:
        part = F.horizontal_flip(part)
    if how.resized == how.size:
        return part.contiguous()
    return _paste(torch.full(how.size, IGNORE_INDEX, dtype=target.dtype), part, how)


def jitter_color(image: Tensor, how: Augmentation) -> Tensor:
    """Brightness, contrast (about the mean luma), saturation and hue of a 3,H,W uint8 image, clamped once at the end.

    All four are affine in RGB, so they are one 3x3 matrix and an offset: several times quicker than one after the
    other. Sums are written out so that the result does not depend on the number of threads.
    """
    if (how.brightness, how.contrast, how.saturation, how.hue) == (1, 1, 1, 0):
        return image
    angle = 2 * math.pi * how.hue
    turn = np.array([[1, 0, 0], [0, math.cos(angle), -math.sin(angle)], [0, math.sin(angle), math.cos(angle)]])
    saturate = how.saturation * np.eye(3) + (1 - how.saturation) * np.ones((3, 1)) * LUMA
    # Hue and saturation keep gray as it is, so the offset that contrast adds to every channel passes through them.
    matrix = how.brightness * how.contrast * (YIQ_TO_RGB @ turn @ RGB_TO_YIQ @ saturate)
    mean = image.sum(dim=(1, 2), dtype=torch.int64).numpy() / image[0].numel()  # whole numbers: exact in any order
    offset = (1 - how.contrast) * how.brightness * float(LUMA @ mean)
    red, green, blue = image.float()
    rows = [float(r) * red + float(g) * green + float(b) * blue for r, g, b in matrix]
    return torch.stack(rows).add_(offset + 0.5).clamp_(0, 255).to(torch.uint8)


def _paste(canvas: Tensor, part: Tensor, how: Augmentation) -> Tensor:
    (top, left), (height, width) = how.offset, how.resized
    canvas[..., top : top + height, left : left + width] = part
    return canvas
