"""Joint augmentation of an image and its mask: scale, crop, flip and color jitter, with parameters drawn before.

Only the part of a picture that is kept is scaled, recolored or looked up.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from seghiero_core.data.augmentation import AugmentationParams
from seghiero_core.data.jitter import jitter_bytes, jitter_color
from seghiero_core.hierarchy.tree import IGNORE_INDEX, Hierarchy
from seghiero_core.readers import Bands

PAD_RGB = (124, 116, 104)
"""The mean color of ImageNet: close to zero after the normalization of every backbone."""


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
        if bands is None:  # a resize of bytes is so much faster in this memory format that a copy of the part pays
            part = part[None].contiguous(memory_format=torch.channels_last)[0]
        part = resize_with_gaps(part, params.resized)
    if bands is None:
        return _finish_rgb(part, params)
    if bands.rgb:
        part, rgb = part.clone(), list(bands.rgb)
        part[rgb] = jitter_color(part[rgb], params)
    if params.flip:
        part = F.horizontal_flip(part)
    part = part.float()
    if params.resized == params.size:
        return part.contiguous()
    return _paste(torch.full((len(part), *params.size), torch.nan), part, params)


def _finish_rgb(part: Tensor, params: AugmentationParams) -> Tensor:
    """Jitter, flip and pad 3,h,w uint8, which touches every pixel once."""
    result = np.empty((3, *params.size), dtype=np.uint8)
    if params.resized != params.size:
        result[...] = np.array(PAD_RGB, dtype=np.uint8).reshape(3, 1, 1)
    (top, left), (height, width) = params.offset, params.resized
    pixels = part.numpy()[..., ::-1] if params.flip else part.numpy()
    jitter_bytes(pixels, params, result[:, top : top + height, left : left + width])
    return torch.from_numpy(result)


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
    return _pad_target(torch.from_numpy(_nearest(target.numpy(), params).copy()), params)


def augment_mask(mask: np.ndarray, params: AugmentationParams, hierarchy: Hierarchy) -> tuple[Tensor, Tensor]:
    """Apply an augmentation to a mask as `augment_target` does, and look up the labels of what is kept.

    Args:
        mask: H,W label values, all of which `hierarchy` knows.
        params: The augmentation that the image got.
        hierarchy: The class tree with N nodes and S sets, and the mask values of the mask's source.

    Returns:
        h,w int64 labels of `params.size`, padded with `IGNORE_INDEX`, contiguous; and their `label_counts`, N+S+1.
    """
    values = torch.from_numpy(_nearest(mask, params).astype(np.int32))
    table = torch.from_numpy(hierarchy.label_table())
    target = _pad_target(table.index_select(0, values.flatten()).view(values.shape), params)
    ignored = len(hierarchy.label_nodes)
    counts = torch.zeros(ignored + 1, dtype=torch.int64)
    of_values = torch.bincount(values.flatten(), minlength=len(table))  # fewer bytes to read than of the labels
    counts.index_add_(0, table.where(table >= 0, ignored), of_values)
    counts[ignored] += target.numel() - values.numel()
    return target, counts


def _nearest(mask: np.ndarray, params: AugmentationParams) -> np.ndarray:
    """The part of a mask that is kept, scaled and flipped; a view where it can be."""
    top, left, height, width = params.box
    part = mask[top : top + height, left : left + width]
    if params.resized != (height, width):
        rows, columns = params.resized
        part = part.take(_nearest_indices(height, rows), axis=0).take(_nearest_indices(width, columns), axis=1)
    return part[:, ::-1] if params.flip else part


def _nearest_indices(length: int, to: int) -> np.ndarray:
    """The pixels that PyTorch's "nearest-exact" takes, which computes the scale in float32."""
    scale = float(np.float32(length) / np.float32(to))
    return np.minimum(((np.arange(to) + 0.5) * scale).astype(np.float32).astype(np.int64), length - 1)


def _pad_target(part: Tensor, params: AugmentationParams) -> Tensor:
    if params.resized == params.size:
        return part
    return _paste(torch.full(params.size, IGNORE_INDEX, dtype=part.dtype), part, params)


def _paste(canvas: Tensor, part: Tensor, params: AugmentationParams) -> Tensor:
    (top, left), (height, width) = params.offset, params.resized
    canvas[..., top : top + height, left : left + width] = part
    return canvas
