"""Decoding common JPEG and PNG files with imagecodecs, where it gives the pixels that Pillow gives, in less time."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image

from seghiero_core.data.orientation import exif_orientation

_END_OF_JPEG = b"\xff\xd9"
_Decode = Callable[[bytes], np.ndarray]


def decode_upright(image: Image.Image) -> np.ndarray | None:
    """Decode an image that Pillow has opened, if it is of a common kind and imagecodecs is installed.

    The pixels are those of Pillow. Files that may be damaged are left to Pillow, which says what is wrong.

    Args:
        image: An open 8-bit gray or RGB image; it is not changed.

    Returns:
        H,W or H,W,3 uint8; None where Pillow should decode it.
    """
    decode = _decoders().get(image.format)
    if decode is None or image.fp is None or not _is_common(image) or exif_orientation(image) != 1:
        return None
    position = image.fp.tell()
    image.fp.seek(0)
    data = image.fp.read()
    image.fp.seek(position)
    if image.format == "JPEG" and not data.endswith(_END_OF_JPEG):
        return None  # imagecodecs fills what is missing with gray
    if image.format == "PNG" and not _is_whole_png(data):
        return None  # imagecodecs doesn't compare checksums
    try:
        pixels = decode(data)
    except Exception:  # what Pillow can't decode either, or what it takes for harmless
        return None
    shape = (image.height, image.width, *((3,) if image.mode == "RGB" else ()))
    return pixels if pixels.shape == shape and pixels.dtype == np.uint8 else None


@cache
def _decoders() -> dict[str, _Decode]:
    """The decoders by the format's name in Pillow; none if imagecodecs isn't installed."""
    try:
        import imagecodecs
    except ImportError:
        return {}
    found: dict[str, _Decode] = {}
    if imagecodecs.JPEG8.available:
        found["JPEG"] = imagecodecs.jpeg8_decode
    if imagecodecs.SPNG.available:
        found["PNG"] = imagecodecs.spng_decode
    return found


def _is_common(image: Image.Image) -> bool:
    """Whether a file holds 8-bit gray or RGB, and Pillow would decode it without conversion.

    Progressive JPEGs are excluded: imagecodecs doesn't report missing scans.
    """
    if image.mode not in ("L", "RGB") or getattr(image, "is_animated", False) or len(image.tile) != 1:
        return False
    if "progressive" in image.info:
        return False
    arguments = image.tile[0].args
    return (arguments if isinstance(arguments, str) else arguments[0]) == image.mode


def _is_whole_png(data: bytes) -> bool:
    """Whether all chunks up to the last are there and have the checksums that follow them."""
    position = 8  # behind the signature
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        end = position + 8 + length
        if end + 4 > len(data) or zlib.crc32(data[position + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            return False
        if data[position + 4 : position + 8] == b"IEND":
            return True
        position = end + 4
    return False
