"""Color jitter of RGB images."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from seghiero_core.data.augmentation import AugmentationParams

_LUMA = np.array([0.299, 0.587, 0.114])
# RGB to YIQ (ITU-R BT.601 luma, NTSC chroma). Rotating the I-Q plane changes the hue and keeps the luma.
_RGB_TO_YIQ = np.array([_LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_YIQ_TO_RGB = np.linalg.inv(_RGB_TO_YIQ)
_CACHED_PIXELS = 1 << 15  # whose floats fit into a core's cache


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
    if not _changes_color(params):
        return image
    if not image.is_floating_point():
        result = np.empty(image.shape, dtype=np.uint8)
        jitter_bytes(image.numpy(), params, result)
        return torch.from_numpy(result)
    matrix, offset = color_matrix(_mean_color(image.numpy()), params)
    red, green, blue = image
    rows = [float(r) * red + float(g) * green + float(b) * blue for r, g, b in matrix]
    return torch.stack(rows).add_(offset)


def _changes_color(params: AugmentationParams) -> bool:
    return (params.brightness, params.contrast, params.saturation, params.hue) != (1, 1, 1, 0)


def color_matrix(mean: np.ndarray, params: AugmentationParams) -> tuple[np.ndarray, float]:
    """Compute what a color jitter multiplies RGB by, and adds to it.

    Args:
        mean: The mean red, green and blue of the image, of shape (3).
        params: See `jitter_color`.

    Returns:
        3,3 floats, and the number that is added to all channels.
    """
    angle = 2 * math.pi * params.hue
    turn = np.array([[1, 0, 0], [0, math.cos(angle), -math.sin(angle)], [0, math.sin(angle), math.cos(angle)]])
    saturate = params.saturation * np.eye(3) + (1 - params.saturation) * np.ones((3, 1)) * _LUMA
    # Hue and saturation leave gray unchanged, so the offset that contrast adds to every channel passes through them.
    matrix = params.brightness * params.contrast * (_YIQ_TO_RGB @ turn @ _RGB_TO_YIQ @ saturate)
    return matrix, (1 - params.contrast) * params.brightness * float(_LUMA @ mean)


def jitter_bytes(pixels: np.ndarray, params: AugmentationParams, result: np.ndarray) -> None:
    """Change colors as `jitter_color` does, some rows at a time so that the floats stay in the cache.

    Args:
        pixels: 3,H,W uint8 RGB, in any memory layout.
        params: See `jitter_color`.
        result: 3,H,W uint8, which is written.
    """
    if not _changes_color(params):
        result[...] = pixels
        return
    matrix, offset = color_matrix(_mean_color(pixels), params)
    matrix, shift = matrix.astype(np.float32), np.float32(offset + 0.5)
    _, height, width = pixels.shape
    rows = max(1, _CACHED_PIXELS // width)
    colors = np.empty((3, rows, width), dtype=np.float32)
    total, term = np.empty((2, rows, width), dtype=np.float32)
    for start in range(0, height, rows):
        end = min(start + rows, height)
        channels, sums, products = colors[:, : end - start], total[: end - start], term[: end - start]
        channels[...] = pixels[:, start:end]
        for channel, (red, green, blue) in enumerate(matrix):
            np.multiply(channels[0], red, out=sums)
            np.add(sums, np.multiply(channels[1], green, out=products), out=sums)
            np.add(sums, np.multiply(channels[2], blue, out=products), out=sums)
            np.add(sums, shift, out=sums)
            result[channel, start:end] = np.clip(sums, 0, 255, out=sums)


def _mean_color(pixels: np.ndarray) -> np.ndarray:
    """The mean of each channel of C,H,W over the pixels with data, the same on any number of threads."""
    if pixels.dtype == np.uint8:  # integers: exact in any order
        pixels = pixels[..., ::-1] if pixels.strides[2] < 0 else pixels  # sums from right to left take far longer
        columns = pixels.sum(axis=1, dtype=np.uint32)
        return columns.sum(axis=1, dtype=np.int64) / pixels[0].size
    pixels = pixels[:, ~np.isnan(pixels[0])]
    return pixels.mean(axis=1, dtype=np.float64) if pixels.size else np.zeros(len(pixels))
