"""Input images: a path, a Pillow image, an array or a tensor, read as a whole, crop by crop or window by window."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from seghiero_core.data.bands import mark_nodata, read_bands, read_header, to_stored_units
from seghiero_core.data.images import check_image_mode, to_rgb
from seghiero_core.data.orientation import turn_upright, upright_size
from seghiero_core.decode_modes import undecided_id
from seghiero_core.errors import DataError, UsageError
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.model.tiling import Picture
from seghiero_core.predict.display import Display
from seghiero_core.predict.raster import is_raster, open_raster
from seghiero_core.readers import Bands

MAX_PIXELS = 2_000_000_000
"""Larger images are refused, except rasters: a small file can claim any size, and its pixels have to fit in memory."""
READ_AHEAD_PIXELS = 1 << 24
"""Images up to this size are decoded when they are opened, larger ones when their first crop is read."""
_PILLOW_LIMIT_LOCK = threading.Lock()


def open_picture(source: Any, *, bands: Bands | None = None, max_pixels: int | None = None) -> Picture:
    """Open an image of any kind.

    Args:
        source: A path, a Pillow image, an array H,W,3 or H,W (gray), or a tensor 3,H,W. Arrays and tensors hold values
            0..255, as uint8 or as floats, which are rounded. With `bands`, arrays are H,W,C and tensors C,H,W, in
            stored units.
        bands: How to read it. Default: as 8-bit RGB.
        max_pixels: Refuse files that claim to be larger. Default: MAX_PIXELS, but for rasters no limit.

    Returns:
        The image, turned upright. Where it has no data and `bands` is given, its crops are NaN.

    Raises:
        DataError: The file can't be read, claims more than `max_pixels`, or has another number of bands.
        UsageError: The source is not an image, or has another number of bands.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        if is_raster(path):
            picture = open_raster(path, bands)
            if max_pixels is not None:
                _check_pixels(path, picture.height, picture.width, max_pixels)
            return picture
        limit = MAX_PIXELS if max_pixels is None else max_pixels
        return _from_file(path, limit) if bands is None else _from_bands_file(path, bands, limit)
    if isinstance(source, Image.Image):
        if bands is not None:
            return _from_bands(np.array(_upright_copy(source)), bands)
        check_image_mode(source, Path("the image"))
        return _from_pillow(_upright_copy(source), "the image")
    return _from_array(source) if bands is None else _from_bands(source, bands)


def empty_id(hierarchy: Hierarchy, undecided: int | None, picture: Picture) -> int | None:
    """Choose the id of the pixels of a picture that get no class.

    Args:
        hierarchy: The classes.
        undecided: See `Predictor.undecided`.
        picture: The image.

    Returns:
        `undecided_id` if predictions may back off, pixels may be without data, or the picture is a raster, whose masks
        have a nodata value in any case; else None.
    """
    if undecided is None and picture.valid is None and picture.raster is None:
        return None
    return undecided_id(hierarchy)


def _check_pixels(path: Path, height: int, width: int, limit: int) -> None:
    if height * width > limit:
        raise DataError(
            f"{path} claims to have {width}x{height} px, more than the limit of {limit} px in total; "
            "if that is right, raise the limit with --max-pixels."
        )


def _from_bands_file(path: Path, bands: Bands, max_pixels: int) -> Picture:
    _check_pixels(path, *read_header(path, channels=bands.channels).size, max_pixels)
    return _bands_picture(read_bands(path, channels=bands.channels, nodata=bands.nodata), bands)


def _from_bands(source: Any, bands: Bands) -> Picture:
    """An array H,W,C or a tensor C,H,W of any type; H,W for one band."""
    is_tensor = hasattr(source, "detach")
    array = source.detach().cpu().numpy() if is_tensor else np.asarray(source)
    if array.ndim == 2:
        array = array[None] if is_tensor else array[..., None]
    if array.ndim != 3 or array.shape[0 if is_tensor else 2] != bands.channels:
        axes = f"a tensor {bands.channels},H,W" if is_tensor else f"an array H,W,{bands.channels}"
        raise UsageError(
            f"expected {axes}, for the {bands.channels} bands that the network takes; found shape {array.shape} of "
            f"{array.dtype}."
        )
    if 0 in array.shape:
        raise UsageError(f"the image is empty: its shape is {array.shape}.")
    array = array.transpose(1, 2, 0) if is_tensor else array
    return _bands_picture(mark_nodata(to_stored_units(array, Path("the image"), bands.nodata), bands.nodata), bands)


def _bands_picture(array: np.ndarray, bands: Bands) -> Picture:
    """A picture of bands H,W,C, NaN where there is no data."""
    valid = ~np.isnan(array[..., 0]) if array.dtype.kind == "f" else None
    has_nodata = valid is not None and not valid.all()
    return Picture(
        *array.shape[:2],
        lambda top, bottom, left, right: array[top:bottom, left:right],
        valid=(lambda top, bottom, left, right: valid[top:bottom, left:right]) if has_nodata else None,
        show=Display(bands.rgb, lambda: array),
    )


def _from_file(path: Path, max_pixels: int) -> Picture:
    image = None
    try:
        with _without_pillow_limit():
            image = Image.open(path)
        height, width = upright_size(image)
        _check_pixels(path, height, width, max_pixels)
        check_image_mode(image, path)
        if height * width > READ_AHEAD_PIXELS:
            return _from_pillow(image, str(path))
        turn_upright(image)
        array = to_rgb(image)
        image.close()
        return _from_array(array)
    except Exception as error:  # Pillow's decoders raise nearly every kind on a damaged file
        if image is not None:
            image.close()
        if isinstance(error, DataError | MemoryError):
            raise
        raise _unreadable(path, error) from None


@contextmanager
def _without_pillow_limit() -> Iterator[None]:
    """Turn off Pillow's own limit, a global variable, in favor of `max_pixels`."""
    with _PILLOW_LIMIT_LOCK:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _upright_copy(image: Image.Image) -> Image.Image:
    """A copy for turning upright in place; the caller's image is at most decoded."""
    if image.format != "TIFF":
        return ImageOps.exif_transpose(image)
    name, image.filename = image.filename, ""  # for the reason given in `turn_upright`
    try:
        return ImageOps.exif_transpose(image)
    finally:
        image.filename = name


def _from_pillow(image: Image.Image, name: str) -> Picture:
    height, width = upright_size(image)
    return Picture(height, width, _PillowImage(image, name).crop)


class _PillowImage:
    """Crops of an image that stays in Pillow's own format, and is decoded by the first crop."""

    def __init__(self, image: Image.Image, name: str):
        self.image, self.name = image, name
        self.is_upright = False
        self.failure: DataError | None = None

    def crop(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        if self.failure is not None:
            raise self.failure
        try:
            if not self.is_upright:
                turn_upright(self.image)  # in place: two copies may not fit in memory
                self.is_upright = True
            return to_rgb(self.image.crop((left, top, right, bottom)))
        except MemoryError:
            raise
        except Exception as error:
            self.image.close()
            self.failure = _unreadable(self.name, error)
            raise self.failure from None


def _from_array(source: Any) -> Picture:
    is_tensor = hasattr(source, "detach")
    array = source.detach().cpu().numpy() if is_tensor else np.asarray(source)
    if is_tensor and array.ndim == 3 and array.shape[0] == 3:
        array = array.transpose(1, 2, 0)
    elif not is_tensor and array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=2)
    elif is_tensor or array.ndim != 3 or array.shape[2] != 3:
        expected = "a tensor 3,H,W" if is_tensor else "a path, a Pillow image, or an array H,W,3 or H,W"
        raise UsageError(f"expected {expected} of RGB values 0..255, found shape {array.shape} of {array.dtype}.")
    if 0 in array.shape:
        raise UsageError(f"the image is empty: its shape is {array.shape}.")
    if array.dtype != np.uint8:
        array = _to_uint8(array)
    height, width = array.shape[:2]
    return Picture(height, width, lambda top, bottom, left, right: array[top:bottom, left:right])


def _to_uint8(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "fiu" or not np.isfinite(array).all() or array.min() < 0 or array.max() > 255:
        raise UsageError(f"expected RGB values 0..255, found {array.dtype} from {array.min()} to {array.max()}.")
    if array.dtype.kind == "f" and 0 < array.max() <= 1:
        raise UsageError("expected RGB values 0..255, found floats no larger than 1; multiply them by 255.")
    return np.round(array).astype(np.uint8)


def _unreadable(name: object, error: Exception) -> DataError:
    return DataError(f"{name} can't be read ({error}). Replace the file, or remove it from the inputs.")
