"""Decoding with Pillow: images to RGB, masks to label values, label values to targets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from seghiero_core.errors import DataError, shorten
from seghiero_core.hierarchy.tree import Hierarchy

_MASK_MODES = frozenset({"1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N"})
_EXIF_ORIENTATION = 0x0112


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Open a Pillow image and turn every error raised while it is open into a DataError that names the file.

    Args:
        path: An image or mask file.

    Yields:
        The open image, not yet decoded.

    Raises:
        DataError: When the file is missing or damaged, or the `with` block fails to decode it.
    """
    try:
        with Image.open(path) as image:
            yield image
    except (DataError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path} no longer exists. Restore it, or remove its pair.") from error
    except Exception as error:  # Pillow's decoders raise nearly every exception type on a damaged file
        raise DataError(f"{path} can't be read ({error}). Replace the file, or remove it and its pair.") from error


def read_image(path: Path) -> np.ndarray:
    """Decode a still image to RGB, rotated upright by its EXIF orientation.

    Alpha is dropped, palettes and CMYK are converted, and 16-bit gray keeps its high byte.

    Args:
        path: A file in any format that Pillow reads.

    Returns:
        H,W,3 uint8 RGB.

    Raises:
        DataError: When the file is missing or damaged, or has floating-point pixels.
    """
    with open_image(path) as image:
        check_image_mode(image, path)
        return to_rgb(ImageOps.exif_transpose(image))


def check_image_mode(image: Image.Image, path: Path) -> None:
    """Refuse floating-point pixels, whose range is unknown.

    Args:
        image: An open image.
        path: The name to use in the message.

    Raises:
        DataError: When the image has floating-point pixels.
    """
    if image.mode == "F":
        raise DataError(f"{path} has floating-point pixels; convert it to 8 bits per channel.")


def to_rgb(image: Image.Image) -> np.ndarray:
    """Convert a Pillow image, or a crop of one, to RGB.

    Args:
        image: An image of any mode except "F".

    Returns:
        H,W,3 uint8 RGB.
    """
    if image.mode.startswith("I"):
        gray = (np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=2)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def read_mask(path: Path) -> np.ndarray:
    """Decode a mask of label values.

    Args:
        path: A file with one channel, or a palette, whose indices are the label values.

    Returns:
        H,W label values: uint8, uint16 or int32, as stored.

    Raises:
        DataError: When the file is missing or damaged, or has several channels.
    """
    with open_image(path) as image:
        check_mask_mode(image, path)
        mask = np.array(image)
    if mask.dtype == bool:
        return mask.astype(np.uint8)
    return mask.astype(mask.dtype.newbyteorder("="), copy=False)


def check_mask_mode(image: Image.Image, path: Path) -> None:
    """Refuse a mask that does not have one channel of integers.

    Args:
        image: An open mask.
        path: The name to use in the message.

    Raises:
        DataError: When the mask has several channels, or floating-point pixels.
    """
    if image.mode not in _MASK_MODES:
        raise DataError(
            f"{path} has the channels {', '.join(image.getbands())} (mode {image.mode}); a mask has one channel with "
            "the label value of each pixel. Save it as an 8-bit, 16-bit or palette PNG of label values "
            "(`seghiero data convert` converts masks painted in class colors)."
        )


def read_target(path: Path, hierarchy: Hierarchy) -> np.ndarray:
    """Decode a mask and look up the node of every label value.

    Args:
        path: A mask file, as for `read_mask`.
        hierarchy: The class tree.

    Returns:
        H,W int64 node indices, with `IGNORE_INDEX` at ignored pixels.

    Raises:
        DataError: When the mask can't be read, or has a value that is neither a label nor the ignore value.
    """
    mask = read_mask(path)
    try:
        return hierarchy.to_target(mask)
    except ValueError:
        values, counts = np.unique(mask, return_counts=True)
        pixels = dict(zip(values.tolist(), counts.tolist(), strict=True))
        raise unknown_labels_error(path, unknown_values(pixels, hierarchy)) from None


def unknown_values(pixels: Mapping[int, int], hierarchy: Hierarchy) -> dict[int, int]:
    """Select the mask values that are neither a label nor the ignore value.

    Args:
        pixels: The number of pixels of each mask value.
        hierarchy: The class tree.

    Returns:
        The number of pixels of each unknown value.
    """
    return {
        value: count for value, count in pixels.items() if value not in hierarchy.values and value != hierarchy.ignore
    }


def unknown_labels_error(path: Path, pixels: Mapping[int, int]) -> DataError:
    """Build the error for a mask with unknown label values.

    Args:
        path: The mask file.
        pixels: The number of pixels of each unknown value.

    Returns:
        An error that lists the values, the most frequent first.
    """
    by_count = sorted(pixels.items(), key=lambda entry: -entry[1])
    listed = shorten([f"{value} ({count} px)" for value, count in by_count], 5)
    return DataError(
        f"{path} has values that are not labels: {listed}. Add them to classes.labels, or set classes.ignore to the "
        "value of pixels to ignore."
    )


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Get the size of an image once it is rotated upright, from its header.

    Args:
        image: An open image; it is not decoded.

    Returns:
        (H, W) in px.
    """
    width, height = image.size
    return (width, height) if exif_swaps_sides(image) else (height, width)


def exif_swaps_sides(image: Image.Image) -> bool:
    """Check whether the EXIF orientation swaps height and width.

    Args:
        image: An open image; it is not decoded.

    Returns:
        True for the four orientations that rotate by a quarter turn.
    """
    return image.getexif().get(_EXIF_ORIENTATION) in (5, 6, 7, 8)
