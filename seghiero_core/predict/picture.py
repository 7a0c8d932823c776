"""What can be predicted: a path, a Pillow image, an array or a tensor, read as a whole or crop by crop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from seghiero_core.data.images import check_image_mode, to_rgb, upright_size
from seghiero_core.errors import DataError, UsageError

MAX_PIXELS = 2_000_000_000
"""Larger images are refused: a small file can claim any size, and what it claims has to fit in memory."""
READ_AHEAD_PIXELS = 1 << 24
"""Images up to this size are decoded when they are opened, larger ones when their first crop is asked for."""
_LOCK = threading.Lock()


@dataclass(frozen=True)
class Picture:
    """An upright RGB image; `crop(top, bottom, left, right)` in px gives H,W,3 uint8."""

    height: int
    width: int
    crop: Callable[[int, int, int, int], np.ndarray]

    def whole(self) -> np.ndarray:
        """H,W,3 uint8."""
        return self.crop(0, self.height, 0, self.width)


def open_picture(source: Any, *, max_pixels: int = MAX_PIXELS) -> Picture:
    """The picture in a file (a path), a Pillow image, an array or a tensor.

    Arrays are H,W,3 or H,W (gray); tensors are 3,H,W; both are uint8, or floats of 0..255, which are rounded. Raises
    DataError for a file that can't be read or claims more than `max_pixels`, UsageError for any other input.
    """
    if isinstance(source, str | Path):
        return _from_file(Path(source), max_pixels)
    if isinstance(source, Image.Image):
        check_image_mode(source, Path("the image"))
        return _from_image(ImageOps.exif_transpose(source), "the image")
    return _from_array(source)


def _from_file(path: Path, max_pixels: int) -> Picture:
    image = None
    try:
        with _no_limit_of_pillow():
            image = Image.open(path)
        height, width = upright_size(image)
        if height * width > max_pixels:
            raise DataError(
                f"{path} says that it has {width}x{height} px, more than the limit of {max_pixels} in all; "
                "if that is true, raise the limit (--max-pixels)."
            )
        check_image_mode(image, path)
        if height * width > READ_AHEAD_PIXELS:
            return _from_image(image, str(path))
        array = to_rgb(ImageOps.exif_transpose(image))
        image.close()
        return _from_array(array)
    except Exception as error:  # Pillow's decoders raise nearly every kind on a damaged file
        if image is not None:
            image.close()
        if isinstance(error, DataError | MemoryError):
            raise
        raise _unreadable(path, error) from None


@contextmanager
def _no_limit_of_pillow() -> Iterator[None]:
    """Pillow warns of and refuses large images by a global of its own; the limit here is `max_pixels`."""
    with _LOCK:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _from_image(image: Image.Image, name: str) -> Picture:
    """Keeps the image, which nobody else has, as Pillow decodes it, in its own mode, and converts what is cropped."""
    height, width = upright_size(image)
    is_upright = False

    def crop(top: int, bottom: int, left: int, right: int) -> np.ndarray:
        nonlocal is_upright
        try:
            if not is_upright:
                ImageOps.exif_transpose(image, in_place=True)  # else it would copy, and two may not fit in memory
                is_upright = True
            return to_rgb(image.crop((left, top, right, bottom)))
        except MemoryError:
            raise
        except Exception as error:
            raise _unreadable(name, error) from None

    return Picture(height, width, crop)


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
        if array.dtype.kind not in "fiu" or not np.isfinite(array).all() or array.min() < 0 or array.max() > 255:
            raise UsageError(f"expected RGB values 0..255, found {array.dtype} from {array.min()} to {array.max()}.")
        if array.dtype.kind == "f" and 0 < array.max() <= 1:
            raise UsageError("expected RGB values 0..255, found floats of 0..1 at most; multiply them by 255.")
        array = np.round(array).astype(np.uint8)
    return Picture(*array.shape[:2], lambda top, bottom, left, right: array[top:bottom, left:right])


def _unreadable(name: object, error: Exception) -> DataError:
    return DataError(f"{name} can't be read ({error}). Replace the file, or leave it out.")
