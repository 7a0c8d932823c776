"""Images with any number of bands, in the units that they are stored in: PNG, TIFF, .npy and 8-bit pictures."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from seghiero_core.data.faults import FileError, missing_file, unreadable_file
from seghiero_core.data.orientation import QUARTER_TURNS, exif_orientation, turn_upright, upright_size
from seghiero_core.errors import DataError, UsageError

ARRAY_EXTENSION = ".npy"
"""Arrays that numpy saved; they are images only where `dataset.channels` is set."""
_PICTURES = ("PNG", "JPEG", "MPO", "BMP", "WEBP")  # what Pillow reads as stored; it cuts others to 8 bits
_MODES = {"L": 1, "I;16": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}  # bands of the modes whose pixels are as stored
_EXACT = 1 << 24  # whole numbers up to this are exact in float32
_START = 26  # bytes that tell the format, and of a PNG end with the bits per sample and the color type
_PNG_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # by color type; without palettes
_FLIPS = {2: (1, -1), 3: (-1, -1), 4: (-1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}  # after transposing 5 to 8


class Stored(NamedTuple):
    """What the header of an image says.

    Attributes:
        size: (H, W) of the upright image in px.
        channels: The number of bands.
        orientation: The EXIF orientation, 1 to 8.
    """

    size: tuple[int, int]
    channels: int
    orientation: int = 1


def read_bands(path: Path, data: bytes | None = None, *, channels: int, nodata: float | None = None) -> np.ndarray:
    """Decode an image as it is stored, rotated upright by its EXIF orientation.

    Formats: PNG with 8 or 16 bits, TIFF of any type, .npy (H,W,C; C,H,W where only that fits; H,W for one band), JPEG,
    BMP and WebP.

    Args:
        path: The file, or the name of `data` in messages. Its first bytes tell the format.
        data: The bytes of the file. Default: the file's.
        channels: The number of bands that it must have.
        nodata: The value that all bands of a pixel have where there is no data.

    Returns:
        H,W,C in stored units: uint8 as uint8, everything else as float32. Pixels without data, where all bands are
        `nodata` or a band is NaN, are NaN in all bands; an image with such pixels is float32.

    Raises:
        DataError: When the file is missing or damaged, has another number of bands, or values that float32 can't hold.
        UsageError: When it is a TIFF and tifffile isn't installed.
    """
    array, _ = _decode(path, data, channels, pixels=True)
    return mark_nodata(to_stored_units(array, path, nodata), nodata)


def read_header(path: Path, data: bytes | None = None, *, channels: int) -> Stored:
    """Find the size of an image from its header, and check its number of bands.

    Args:
        path: As for `read_bands`.
        data: As for `read_bands`.
        channels: The number of bands that it must have.

    Returns:
        What the header says.

    Raises:
        DataError: When the file is missing or damaged, or has another number of bands.
        UsageError: When it is a TIFF and tifffile isn't installed.
    """
    return _decode(path, data, channels, pixels=False)[1]


def mark_nodata(image: np.ndarray, nodata: float | None) -> np.ndarray:
    """Set pixels without data to NaN in all bands.

    Args:
        image: H,W,C uint8 or float32.
        nodata: The value that all bands of such a pixel have. Pixels with a NaN are without data in any case.

    Returns:
        `image` itself where every pixel has data; else H,W,C float32.
    """
    absent = np.zeros(image.shape[:2], dtype=bool)
    if image.dtype.kind == "f":
        absent = np.isnan(image).any(axis=2)
    if nodata is not None:
        with np.errstate(over="ignore"):
            absent |= (image == (np.float32(nodata) if image.dtype.kind == "f" else nodata)).all(axis=2)
    if not absent.any():
        return image
    marked = image.astype(np.float32)  # a copy
    marked[absent] = np.nan
    return marked


def to_stored_units(array: np.ndarray, path: Path, nodata: float | None = None) -> np.ndarray:
    """Convert bands to uint8 or, without rounding whole numbers, to float32.

    Args:
        array: H,W,C of any type.
        path: The name to use in messages.
        nodata: The value where there is no data. One that float32 may not hold, such as -2147483648, becomes NaN.

    Returns:
        H,W,C: uint8 as uint8, everything else as float32.

    Raises:
        DataError: When the values aren't real numbers, or float32 can't hold them.
    """
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype.kind not in "uif":
        raise _unknown_pixels(path, f"values of the type {array.dtype}")
    absent = array == nodata if nodata is not None and abs(nodata) > _EXACT else np.zeros((), bool)
    array = np.where(absent, 0, array) if absent.any() else array
    if array.dtype.kind != "f" and array.dtype.itemsize > 2 and np.abs(array.astype(np.float64)).max() > _EXACT:
        raise _unknown_pixels(path, f"whole numbers above {_EXACT}, which float32 would round")
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(array, dtype=np.float32)
    if array.dtype.kind == "f" and np.isinf(values).any():
        raise _unknown_pixels(path, "infinite values or ones too large for float32")
    if absent.any():
        values[absent] = np.nan
    return values


def absent_pixels(image: np.ndarray) -> np.ndarray:
    """Find the pixels without data.

    Args:
        image: H,W,C, as `read_bands` returns it.

    Returns:
        H,W bool.
    """
    if image.dtype.kind == "f":
        return np.isnan(image[..., 0])
    return np.zeros(image.shape[:2], dtype=bool)


def _decode(path: Path, data: bytes | None, channels: int, *, pixels: bool) -> tuple[np.ndarray | None, Stored]:
    """The upright pixels H,W,C as stored, None unless asked for, and the header."""
    try:
        with path.open("rb") if data is None else io.BytesIO(data) as file:
            start = file.read(_START)
            file.seek(0)
            decode = next((of for magic, of in _DECODERS.items() if start.startswith(magic)), _from_picture)
            array, stored = decode(path, file, channels, pixels)
    except FileNotFoundError as error:
        raise missing_file(path) from error
    except (DataError, UsageError, MemoryError):
        raise
    except Exception as error:  # the decoders raise nearly every type on a damaged file
        reason = str(error).partition("\n")[0].replace(f" {str(path)!r}", "") or type(error).__name__
        raise unreadable_file(path, reason) from error
    if stored.channels != channels:
        found = "1 band" if stored.channels == 1 else f"{stored.channels} bands"
        raise FileError(
            f"{path} has {found}, expected {channels}.",
            path,
            kind="bands",
            many=f"{{count}} images don't have {channels} bands: {{files}}.",
            detail=found,
            fix="Replace the file, or train with dataset.channels set to its number of bands.",
            fix_many="Set dataset.channels to the number of bands, or replace the files.",
        )
    if 0 in stored.size:
        raise unreadable_file(path, f"it is empty: {stored.size[0]}x{stored.size[1]} px")
    return array, stored


def _from_picture(path: Path, file: BinaryIO, channels: int, pixels: bool) -> tuple[np.ndarray | None, Stored]:
    """An 8-bit picture of Pillow, or a PNG."""
    with Image.open(file) as image:
        if image.format not in _PICTURES:
            raise _unknown_pixels(path, f"the format {image.format}")
        if image.mode not in _MODES:
            raise _unknown_pixels(path, "a palette" if image.mode == "P" else f"pixels of the mode {image.mode}")
        orientation = exif_orientation(image)
        stored = Stored(upright_size(image), _MODES[image.mode], orientation)
        if not pixels:
            return None, stored
        turn_upright(image)
        return np.array(image).reshape(*stored.size, -1), stored


def _from_png(path: Path, file: BinaryIO, channels: int, pixels: bool) -> tuple[np.ndarray | None, Stored]:
    """A PNG; with 16 bits per sample not by Pillow, which keeps them only for gray."""
    bits, color = file.read(_START)[-2:]
    file.seek(0)
    if bits < 8 and color in _PNG_CHANNELS:  # Pillow would scale them
        raise _unknown_pixels(path, f"pixels of {bits} bit{'s' * (bits > 1)}")
    if bits == 8 or _PNG_CHANNELS.get(color, 1) == 1:
        return _from_picture(path, file, channels, pixels)
    with Image.open(file) as image:
        orientation = exif_orientation(image)
        stored = Stored(upright_size(image), _PNG_CHANNELS[color], orientation)
    if not pixels:
        return None, stored
    try:
        import imagecodecs
    except ImportError:
        raise _needs_rasters(path, "16-bit PNG with several bands", "imagecodecs") from None
    file.seek(0)
    return _turned(imagecodecs.png_decode(file.read()), orientation), stored


def _from_tiff(path: Path, file: BinaryIO, channels: int, pixels: bool) -> tuple[np.ndarray | None, Stored]:
    """The first image of a TIFF; its bands are samples of each pixel, planes or pages."""
    try:
        import tifffile
    except ImportError:
        raise _needs_rasters(path, "TIFF", "tifffile") from None
    logging.getLogger("tifffile").addHandler(logging.NullHandler())  # what is wrong is raised, too
    with tifffile.TiffFile(file) as tiff:
        series = tiff.series[0]
        shape = dict(zip(series.axes, series.shape, strict=True))
        others = [axis for axis in shape if axis not in "YX" and shape[axis] > 1]
        if not {"Y", "X"} <= shape.keys() or len(series.axes) > len(shape) or len(others) > 1:
            listed = "x".join(map(str, series.shape))
            raise _unknown_pixels(path, f"the shape {listed} (axes {series.axes}), which isn't one image with bands")
        if series.keyframe.photometric == tifffile.PHOTOMETRIC.PALETTE:
            raise _unknown_pixels(path, "a palette")
        tag = series.keyframe.tags.get("Orientation")
        orientation = int(tag.value) if tag else 1
        size = (shape["Y"], shape["X"])
        upright = size[::-1] if orientation in QUARTER_TURNS else size
        stored = Stored(upright, shape[others[0]] if others else 1, orientation)
        if not pixels:
            return None, stored
        array = series.asarray()
    order = [series.axes.index(axis) for axis in ("Y", "X", *others)]
    array = array.transpose(*order, *(i for i in range(array.ndim) if i not in order)).reshape(*size, -1)
    return _turned(array, orientation), stored


def _from_array(path: Path, file: BinaryIO, channels: int, pixels: bool) -> tuple[np.ndarray | None, Stored]:
    """An array that numpy saved."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape = read(file)[0]
    if len(shape) == 2:
        moved, shape = (0, 1), (*shape, 1)
    elif len(shape) == 3 and shape[2] != channels and shape[0] == channels:
        moved, shape = (1, 2, 0), (*shape[1:], channels)
    elif len(shape) == 3:
        moved = (0, 1, 2)
    else:
        raise _unknown_pixels(path, f"the shape {shape}; an image is H,W,C")
    stored = Stored(shape[:2], shape[2])
    if not pixels:
        return None, stored
    file.seek(0)
    return np.load(file, allow_pickle=False).transpose(moved).reshape(shape), stored


def _turned(array: np.ndarray, orientation: int) -> np.ndarray:
    """H,W,C turned upright from an EXIF orientation."""
    if orientation in QUARTER_TURNS:
        array = array.transpose(1, 0, 2)
    rows, columns = _FLIPS.get(orientation, (1, 1))
    return array[::rows, ::columns]


def _needs_rasters(path: Path, what: str, package: str) -> UsageError:
    return UsageError(
        f"{path}: reading {what} with dataset.channels needs the package {package}; install it with "
        "`pip install 'seghiero[rasters]'`."
    )


def _unknown_pixels(path: Path, what: str) -> FileError:
    formats = "8-bit or 16-bit PNG, TIFF, or .npy with the axes H,W,C"
    return FileError(
        f"{path} has {what}.",
        path,
        kind="image_pixels",
        many="{count} images can't be read as bands: {files}.",
        detail=what,
        fix=f"Save it as {formats}.",
        fix_many=f"Save them as {formats}.",
    )


_DECODERS: dict[bytes, Callable[[Path, BinaryIO, int, bool], tuple[np.ndarray | None, Stored]]] = {
    b"\x89PNG\r\n\x1a\n": _from_png,
    b"\x93NUMPY": _from_array,
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), _from_tiff),
}
