"""The points and bitmaps of objects in JSON files, checked."""

from __future__ import annotations

import base64
import io
import math
from typing import Any

import numpy as np
from PIL import Image

from seghiero_core.errors import DataError

_FARTHEST = 16  # times the image's size: coordinates beyond that are mistakes, and take much memory to draw


def checked_points(points: Any, shape: tuple[int, int], where: str) -> list[tuple[float, float]]:
    """Check a list of points.

    Args:
        points: What should be pairs [x, y] in px.
        shape: (H, W) of the image, px.
        where: What to call it in the message.

    Returns:
        The pairs.

    Raises:
        DataError: When it is something else, or a point is far outside the image.
    """
    try:
        pairs = [(float(x), float(y)) for x, y in points]
    except (TypeError, ValueError, OverflowError):
        pairs = [(math.inf, math.inf)]
    if all(abs(x) <= _FARTHEST * shape[1] and abs(y) <= _FARTHEST * shape[0] for x, y in pairs):
        return pairs
    found = repr(points)
    raise DataError(
        f"{where}: expected points [x, y] in the image of {shape[0]}x{shape[1]} px (HxW), found "
        f"{found if len(found) <= 60 else f'{found[:57]}...'}; correct the file."
    )


def decode_base64(text: str, where: str) -> bytes:
    """Decode a text of base64.

    Args:
        text: The text.
        where: What to call it in the message.

    Returns:
        The bytes.

    Raises:
        DataError: When it is something else.
    """
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise DataError(f"{where}: the bitmap is not base64 ({error}); export the file again.") from None


def read_bitmap(png: bytes, where: str) -> np.ndarray:
    """Decode the bitmap of an object.

    Args:
        png: The bytes of an image file.
        where: What to call it in the message.

    Returns:
        H,W bool: the pixels that are not 0; of an image with several channels, those that are not transparent.

    Raises:
        DataError: When it can't be decoded.
    """
    try:
        with Image.open(io.BytesIO(png)) as picture:
            one_channel = picture.mode in ("1", "L", "P", "I;16", "I")
            return np.array(picture if one_channel else picture.convert("RGBA").getchannel("A")) > 0
    except Exception as error:  # Pillow's decoders raise nearly every exception type on damaged data
        raise DataError(f"{where}: the bitmap can't be read ({error}); export the file again.") from None


def place_bitmap(pixels: np.ndarray, left: int, top: int, shape: tuple[int, int], where: str) -> np.ndarray:
    """Put the bitmap of an object into a mask of the whole image.

    Args:
        pixels: H,W bool, the bitmap.
        left: Its first column in the image.
        top: Its first row.
        shape: (H, W) of the image, px.
        where: What to call it in the message.

    Returns:
        H,W bool.

    Raises:
        DataError: When it doesn't fit into the image.
    """
    height, width = pixels.shape
    if left < 0 or top < 0 or top + height > shape[0] or left + width > shape[1]:
        raise DataError(
            f"{where}: a bitmap of {height}x{width} px (HxW) at row {top}, column {left} doesn't fit into the image of "
            f"{shape[0]}x{shape[1]} px; correct the file."
        )
    inside = np.zeros(shape, dtype=bool)
    inside[top : top + height, left : left + width] = pixels
    return inside
