"""Pictures of images with any number of bands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from seghiero_core.readers import Bands

if TYPE_CHECKING:
    from torch import Tensor

_SHOWN = (2.0, 98.0)  # percentiles


def picture_of(image: Tensor, bands: Bands | None) -> np.ndarray:
    """Make a picture of an image of a batch.

    Args:
        image: 3,H,W uint8 RGB, or C,H,W with `bands`.
        bands: What the channels are; None for RGB.

    Returns:
        H,W,3 uint8.
    """
    pixels = image.permute(1, 2, 0).cpu().numpy()
    return shown_as_rgb(pixels, bands.rgb) if bands else pixels


def shown_as_rgb(image: np.ndarray, rgb: Sequence[int], span: np.ndarray | None = None) -> np.ndarray:
    """Make a picture of an image with any bands: the bands red, green and blue, or else the first one as gray.

    Args:
        image: H,W,C uint8 or float32, NaN where there is no data.
        rgb: The positions of red, green and blue; empty for none.
        span: What `shown_span` returned, of this image or of a larger one. Default: of this image.

    Returns:
        H,W,3 uint8: each band stretched from its `span` to 0..255, and black where there is no data.
    """
    bands = [*rgb] or [0]
    low, high = shown_span(image, rgb) if span is None else span
    scale = 255 / np.where(high > low, high - low, 1)
    values = np.nan_to_num(np.clip((image[..., bands].astype(np.float32) - low) * scale, 0, 255), nan=0.0)
    return np.broadcast_to(np.rint(values).astype(np.uint8), (*image.shape[:2], 3)).copy()


def shown_span(image: np.ndarray, rgb: Sequence[int]) -> np.ndarray:
    """Find the values that a picture shows as black and white: the 2nd and 98th percentile of each band.

    Args:
        image: H,W,C, NaN where there is no data.
        rgb: As for `shown_as_rgb`.

    Returns:
        2,3 float32 lowest and highest values, or 2,1 without red, green and blue; 0 and 1 for a band without data.
    """
    pixels = image[..., [*rgb] or [0]].reshape(-1, 3 if rgb else 1)
    pixels = pixels[~np.isnan(pixels).any(axis=1)] if pixels.dtype.kind == "f" else pixels
    if not len(pixels):
        return np.array([[0.0], [1.0]], np.float32).repeat(pixels.shape[1], axis=1)
    return np.percentile(pixels, _SHOWN, axis=0).astype(np.float32)
