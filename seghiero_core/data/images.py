"""Decoding with Pillow: images to RGB, masks to label values, label values to node indices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from seghiero_core.errors import DataError
from seghiero_core.hierarchy.tree import Hierarchy

NO_LABEL = -2
"""What `Hierarchy.label_table` holds for a mask value that is neither a label nor ignored."""

MASK_MODES = frozenset({"1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N"})
EXIF_ORIENTATION = 0x0112


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """An open Pillow image; whatever goes wrong while it is open becomes a DataError that names the file."""
    try:
        with Image.open(path) as image:
            yield image
    except (DataError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path} is no longer there. Restore it, or remove its pair.") from error
    except Exception as error:  # Pillow's decoders raise nearly every kind on a damaged file
        raise DataError(f"{path} can't be read ({error}). Replace the file, or remove it and its pair.") from error


def read_image(path: Path) -> np.ndarray:
    """Decode any still image to H,W,3 uint8 RGB, turned upright by its EXIF orientation.

    Alpha is dropped, palettes and CMYK are converted, 16-bit gray keeps its high byte. Raises DataError where the
    file is missing, damaged, or holds floating-point pixels.
    """
    with opened(path) as image:
        check_image_mode(image, path)
        return to_rgb(ImageOps.exif_transpose(image))


def check_image_mode(image: Image.Image, path: Path) -> None:
    """Raise DataError for floating-point pixels, whose range nobody knows."""
    if image.mode == "F":
        raise DataError(f"{path} holds floating-point pixels; convert it to 8 bits per channel.")


def to_rgb(image: Image.Image) -> np.ndarray:
    """A Pillow image (or a crop of one) of any mode but "F" to H,W,3 uint8 RGB."""
    if image.mode.startswith("I"):
        gray = (np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=2)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def read_mask(path: Path) -> np.ndarray:
    """Decode a single-channel mask to H,W of label values: uint8, uint16 or int32 as stored (a palette's indices).

    Raises DataError where the file is missing, damaged, or a colour picture.
    """
    with opened(path) as image:
        check_mask_mode(image, path)
        mask = np.array(image)
        return mask.astype(np.uint8) if mask.dtype == bool else mask.astype(mask.dtype.newbyteorder("="), copy=False)


def check_mask_mode(image: Image.Image, path: Path) -> None:
    """Raise DataError unless the opened mask has one channel of whole numbers."""
    if image.mode not in MASK_MODES:
        raise DataError(
            f"{path} has the channels {', '.join(image.getbands())} (mode {image.mode}); a mask has one channel that "
            "holds the label value of each pixel. Save it as an 8-bit, 16-bit or palette PNG of label values "
            "(`seghiero data convert` does it for masks painted in the classes' colours)."
        )


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(H, W) in px of an opened image once turned upright; reads the header only."""
    width, height = image.size
    return (width, height) if turned_on_its_side(image) else (height, width)


def turned_on_its_side(image: Image.Image) -> bool:
    """Whether the EXIF orientation swaps height and width."""
    return image.getexif().get(EXIF_ORIENTATION) in (5, 6, 7, 8)


def node_table(hierarchy: Hierarchy) -> np.ndarray:
    """`hierarchy.label_table()`, lengthened so that any 16-bit value can index it; the last entry is NO_LABEL."""
    table = hierarchy.label_table()
    longer = np.full(max(len(table), 1 << 16) + 1, NO_LABEL, dtype=np.int64)
    longer[: len(table)] = table
    return longer


def to_nodes(mask: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Label values (any integer dtype, any shape) to int64 node indices, IGNORE_INDEX or NO_LABEL.

    `table` is what `node_table` gives.
    """
    if mask.dtype.itemsize > 2:
        mask = np.where((mask < 0) | (mask >= len(table)), len(table) - 1, mask)
    return table[mask]
