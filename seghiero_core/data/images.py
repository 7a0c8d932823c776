"""Decoding with Pillow: images to RGB, masks to label values, label values to targets."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from seghiero_core.data.decoders import decode_upright
from seghiero_core.data.faults import FileError, missing_file, unreadable_file
from seghiero_core.data.orientation import turn_upright
from seghiero_core.errors import DataError, shorten
from seghiero_core.hierarchy.tree import Hierarchy

_TIFF_BITS_PER_SAMPLE = 258
_RANGES = 8  # of values: to compare with more takes as long as a table
_MASK_MODES = frozenset({"1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N"})


@contextmanager
def open_image(path: Path, data: bytes | None = None) -> Iterator[Image.Image]:
    """Open a Pillow image and turn every error raised while it is open into a DataError that names the file.

    Args:
        path: An image or mask file, or the name of `data` in messages.
        data: The bytes of the image. Default: the file's.

    Yields:
        The open image, not yet decoded.

    Raises:
        DataError: When the file is missing or damaged, or the `with` block fails to decode it.
    """
    try:
        with Image.open(path if data is None else io.BytesIO(data)) as image:
            yield image
    except (DataError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise missing_file(path) from error
    except Exception as error:  # Pillow's decoders raise nearly every exception type on a damaged file
        reason = str(error).replace(f" {str(path)!r}", "")
        if isinstance(error, UnidentifiedImageError) and _is_tiff(path, data):
            reason = "Pillow can't read this kind of TIFF, such as float or 4-band pixels; save it as 8-bit RGB"
        raise unreadable_file(path, reason) from error


def _is_tiff(path: Path, data: bytes | None) -> bool:
    if path.suffix.lower() not in (".tif", ".tiff"):
        return False
    with path.open("rb") if data is None else io.BytesIO(data) as file:
        return file.read(4) in (b"II*\0", b"MM\0*")


def read_image(path: Path, data: bytes | None = None) -> np.ndarray:
    """Decode a still image to RGB, rotated upright by its EXIF orientation.

    Gray, palettes, CMYK and other colors are converted to RGB, alpha is dropped, and 16-bit gray keeps its high byte.

    Args:
        path: A file in any format that Pillow reads.
        data: As for `open_image`.

    Returns:
        H,W,3 uint8 RGB.

    Raises:
        DataError: When the file is missing or damaged, or has 32-bit or floating-point pixels.
    """
    with open_image(path, data) as image:
        check_image_mode(image, path)
        pixels = decode_upright(image)
        if pixels is None:
            turn_upright(image)
            return to_rgb(image)
    return np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels


def check_image_mode(image: Image.Image, path: Path) -> None:
    """Refuse 32-bit and floating-point pixels, whose range is unknown.

    One image doesn't tell its range: a dark one may hold small values only, and a crop may, too.

    Args:
        image: An open image.
        path: The name to use in the message.

    Raises:
        DataError: When the image has such pixels.
    """
    if image.mode == "F" or (image.mode == "I" and not _is_16_bit(image)):
        pixels = "floating-point" if image.mode == "F" else "32-bit"
        raise FileError(
            f"{path} has {pixels} pixels, whose range is unknown.",
            path,
            kind="image_pixels",
            many=f"{{count}} images have {pixels} pixels, whose range is unknown: {{files}}.",
            fix="Convert it to 8 bits per channel, or to 16-bit gray.",
            fix_many="Convert them to 8 bits per channel, or to 16-bit gray.",
        )


def _is_16_bit(image: Image.Image) -> bool:
    """Whether Pillow opened a 16-bit file as a 32-bit image: PGM, which it scales to 0..65535, or signed TIFF."""
    if image.format == "TIFF":
        return image.tag_v2.get(_TIFF_BITS_PER_SAMPLE) == (16,)
    return image.format == "PPM"


def to_rgb(image: Image.Image) -> np.ndarray:
    """Convert a Pillow image, or a crop of one, to RGB.

    Args:
        image: An image of any mode that `check_image_mode` accepts.

    Returns:
        H,W,3 uint8 RGB.
    """
    if image.mode.startswith("I"):
        gray = (np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=2)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def read_mask(path: Path, data: bytes | None = None) -> np.ndarray:
    """Decode a mask of label values, rotated upright by its own EXIF orientation.

    Args:
        path: A file with one channel, or a palette, whose indices are the label values.
        data: As for `open_image`.

    Returns:
        H,W label values: uint8, uint16 or int32, as stored.

    Raises:
        DataError: When the file is missing or damaged, or has several channels.
    """
    with open_image(path, data) as image:
        check_mask_mode(image, path)
        mask = decode_upright(image)
        if mask is None:
            turn_upright(image)
            mask = np.array(image)
    return mask.astype(np.uint8 if mask.dtype == bool else mask.dtype.newbyteorder("="), copy=False)


def check_mask_mode(image: Image.Image, path: Path) -> None:
    """Refuse a mask that does not have one channel of integers, or is compressed as JPEG.

    Args:
        image: An open mask.
        path: The name to use in the message.

    Raises:
        DataError: When the mask has several channels or floating-point pixels, or is a JPEG under another name.
    """
    if image.format in ("JPEG", "MPO") or image.info.get("compression") == "jpeg":
        raise FileError(
            f"{path} is compressed as JPEG, which alters label values.",
            path,
            kind="jpeg_mask",
            many="{count} masks are compressed as JPEG, which alters label values: {files}.",
            fix="Export the mask as PNG.",
            fix_many="Export them as PNG.",
        )
    if image.mode not in _MASK_MODES:
        raise FileError(
            f"{path} has the channels {', '.join(image.getbands())} (mode {image.mode}); a mask has one channel with "
            "the label value of each pixel.",
            path,
            kind="mask_channels",
            many="{count} masks have several channels or floating-point pixels: {files}. A mask has one channel with "
            "the label value of each pixel.",
            detail=f"mode {image.mode}",
            fix="Save 8-bit, 16-bit or palette PNGs of label values (`seghiero data convert colors` converts masks "
            "painted in class colors).",
        )


def check_same_size(
    image: Path,
    image_size: tuple[int, int],
    mask: Path,
    mask_size: tuple[int, int],
    *,
    orientations_differ: bool = False,
) -> None:
    """Refuse a pair whose upright sizes differ.

    Args:
        image: The image file.
        image_size: (H, W) of the upright image, in px.
        mask: The mask file.
        mask_size: (H, W) of the upright mask, in px.
        orientations_differ: Whether their EXIF orientations differ, which may be why.

    Raises:
        DataError: When the sizes differ.
    """
    if image_size == mask_size:
        return
    found, wanted = f"{mask_size[0]}x{mask_size[1]} px (HxW)", f"{image_size[0]}x{image_size[1]}"
    if orientations_differ and mask_size == image_size[::-1]:
        kind, many = "exif_quarter_turn", "{count} masks have height and width swapped: {files}."
        fix = "The EXIF orientation rotates one of the two by a quarter turn: rotate the pixels of the other."
        fix_many = fix.replace("the two", "each pair")
    else:
        kind, many = "mask_size", "{count} masks differ in size from their images: {files}."
        fix = "Export the mask at the image's size, without interpolation."
        fix_many = "Export masks at the size of their images, without interpolation."
    raise FileError(
        f"{mask} is {found}, its image {image} is {wanted}.",
        mask,
        kind=kind,
        many=many,
        detail=f"{found}, image {wanted}",
        fix=fix,
        fix_many=fix_many,
    )


def to_target(mask: np.ndarray, path: Path, hierarchy: Hierarchy) -> np.ndarray:
    """Look up the label of every value of a mask.

    Args:
        mask: H,W label values.
        path: The name of the mask in messages.
        hierarchy: The class tree, with the mask values of the mask's source; see `Hierarchy.of_source`.

    Returns:
        H,W int64 labels, with `IGNORE_INDEX` at ignored pixels.

    Raises:
        DataError: When the mask has a value that is neither a label nor the ignore value.
    """
    try:
        return hierarchy.to_target(mask)
    except ValueError:
        values, counts = np.unique(mask, return_counts=True)
        pixels = dict(zip(values.tolist(), counts.tolist(), strict=True))
        raise DataError(
            f"{path} has values that are not labels: {list_values(unknown_values(pixels, hierarchy))}. Add them to "
            f"{hierarchy.section}.labels, or set {hierarchy.section}.ignore to the value of pixels to ignore."
        ) from None


def check_values(mask: np.ndarray, path: Path, hierarchy: Hierarchy) -> None:
    """Refuse a mask with values that are not labels, as `to_target` does, without looking up the labels.

    Args:
        mask: H,W label values.
        path: See `to_target`.
        hierarchy: See `to_target`.

    Raises:
        DataError: See `to_target`.
    """
    values = {*hierarchy.values, hierarchy.ignore}
    starts = sorted(value for value in values if value - 1 not in values)
    ends = sorted(value for value in values if value + 1 not in values)
    known, least = np.zeros(mask.shape, dtype=bool), np.iinfo(mask.dtype).min
    for start, end in zip(starts[:_RANGES], ends[:_RANGES], strict=True):
        known |= mask <= end if start <= least else (mask >= start) & (mask <= end)
    if not known.all():
        to_target(mask, path, hierarchy)


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


def list_values(pixels: Mapping[int, int]) -> str:
    """List mask values.

    Args:
        pixels: The number of pixels of each value.

    Returns:
        The five most frequent, such as "17 (7 px), 77 (3 px)".
    """
    by_count = sorted(pixels.items(), key=lambda entry: -entry[1])
    return shorten([f"{value} ({count} px)" for value, count in by_count], 5)
