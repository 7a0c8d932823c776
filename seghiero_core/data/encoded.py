"""Reading pairs of encoded images, which are files or parts of larger ones."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from seghiero_core.data.bands import read_bands, read_header
from seghiero_core.data.images import (
    check_image_mode,
    check_mask_mode,
    check_same_size,
    open_image,
    read_image,
    read_mask,
    to_rgb,
)
from seghiero_core.data.orientation import QUARTER_TURNS, exif_orientation, upright_size
from seghiero_core.errors import DataError
from seghiero_core.readers import Bands, Inspection, Reader

_CLOCK_STEP = 2  # s, the coarsest times of changes that file systems keep


class Pair(NamedTuple):
    """An encoded image and its encoded mask.

    Attributes:
        image: The image file, or what messages call it.
        mask: The same of the mask.
        name: The name of the sample.
        load: Returns the bytes of both. Default: they are in the two files.
        size: (H, W) of the upright image in px, where it is known and the mask has it, too.
        stamp: See `Reader.stamp`. Default: of the two files.
    """

    image: Path
    mask: Path
    name: str
    load: Callable[[], tuple[bytes, bytes]] | None = None
    size: tuple[int, int] | None = None
    stamp: str | None = None

    def data(self) -> tuple[bytes | None, bytes | None]:
        """Load the bytes of image and mask.

        Returns:
            The bytes; None where they are in the two files.
        """
        return self.load() if self.load else (None, None)


def encoded_reader(
    pairs: Sequence[Pair], bands: Bands | None = None, *, blocks: Sequence[int] = (), window: int = 1
) -> Reader:
    """Make a reader of encoded images and masks, which gets sizes from headers.

    Args:
        pairs: The pairs; they are indexed whenever one is used, and may be made then.
        bands: How to read the images. Default: as 8-bit RGB.
        blocks: See `Reader`.
        window: See `Reader`.

    Returns:
        The reader.
    """
    return _EncodedReader(pairs, bands, blocks, window)


class _EncodedReader(Reader):
    def __init__(self, pairs: Sequence[Pair], bands: Bands | None, blocks: Sequence[int], window: int) -> None:
        self.pairs, self.bands, self.blocks, self.window = pairs, bands, blocks, window

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray, str]:
        pair = self.pairs[index]
        image, mask = pair.data()
        return decode_image(pair.image, image, self.bands), read_mask(pair.mask, mask), pair.name

    def name(self, index: int) -> str:
        return self.pairs[index].name

    def files(self, index: int) -> tuple[Path, Path]:
        return self.pairs[index][:2]

    def size(self, index: int) -> tuple[int, int]:
        pair = self.pairs[index]
        if pair.size is not None:
            return pair.size
        return image_size(pair.image, pair.data()[0], self.bands)

    def encoded(self, index: int) -> tuple[tuple[bytes, str], tuple[bytes, str]]:
        pair = self.pairs[index]
        stored = zip(pair[:2], pair.data(), strict=True)
        image, mask = (read_file(path) if data is None else data for path, data in stored)
        return (image, _extension(pair.image, image)), (mask, _extension(pair.mask, mask))

    def inspect(self, index: int, *, decode: bool) -> Inspection:
        pair = self.pairs[index]
        if pair.size is not None and not decode:
            return Inspection(pair.size)
        image_data, mask_data = pair.data()
        found, orientation = inspect_image(pair.image, image_data, self.bands, decode=decode)
        with open_image(pair.mask, mask_data) as mask:
            check_mask_mode(mask, pair.mask)
            mask_size, mask_orientation = upright_size(mask), exif_orientation(mask)
        differ = orientation != mask_orientation
        check_same_size(pair.image, found.size, pair.mask, mask_size, orientations_differ=differ)
        is_square = mask_size[0] == mask_size[1]
        turned = differ and (is_square or (orientation in QUARTER_TURNS) == (mask_orientation in QUARTER_TURNS))
        return found._replace(mask=read_mask(pair.mask, mask_data) if decode else None, turned=turned)

    def stamp(self, index: int) -> str | None:
        pair = self.pairs[index]
        stamp = pair.stamp if pair.load else file_stamp(pair.image, pair.mask)
        return stamp and f"{stamp}{stamp_of(self.bands)}"


def decode_image(path: Path, data: bytes | None, bands: Bands | None) -> np.ndarray:
    """Decode an image as `dataset.channels` asks for.

    Args:
        path: The file, or the name of `data` in messages.
        data: The bytes of the image; None for the file's.
        bands: How to read it; None for 8-bit RGB.

    Returns:
        H,W,3 uint8 RGB, or H,W,C as `read_bands` returns it.
    """
    if bands is None:
        return read_image(path, data)
    return read_bands(path, data, channels=bands.channels, nodata=bands.nodata)


def image_size(path: Path, data: bytes | None, bands: Bands | None) -> tuple[int, int]:
    """Get the size of an image from its header.

    Args:
        path: As for `decode_image`.
        data: As for `decode_image`.
        bands: As for `decode_image`.

    Returns:
        (H, W) of the upright image, in px.
    """
    if bands is not None:
        return read_header(path, data, channels=bands.channels).size
    with open_image(path, data) as image:
        return upright_size(image)


def stamp_of(bands: Bands | None) -> str:
    """Tell how images are read, for `Reader.stamp`.

    Args:
        bands: As for `decode_image`.

    Returns:
        A text that is empty for 8-bit RGB.
    """
    return f" {bands.channels} {bands.nodata}" if bands else ""


def file_stamp(*paths: Path) -> str | None:
    """Tell whether files have changed, for `Reader.stamp`.

    Args:
        paths: The files.

    Returns:
        Their sizes and times; None where one is missing, or so new that it may change again at the same time.
    """
    try:
        found = [path.stat() for path in paths]
    except OSError:
        return None  # `inspect` says what is wrong
    if max(each.st_mtime for each in found) > time.time() - _CLOCK_STEP:
        return None
    return " ".join(f"{each.st_size} {each.st_mtime_ns} {each.st_ctime_ns}" for each in found)


def inspect_image(
    path: Path, data: bytes | None = None, bands: Bands | None = None, *, decode: bool
) -> tuple[Inspection, int]:
    """Check an image by its header, or decode it to find damage.

    Args:
        path: The image file, or the name of `data` in messages.
        data: The bytes of the image. Default: the file's.
        bands: How to read it. Default: as 8-bit RGB.
        decode: Whether to decode it.

    Returns:
        What was found, without a mask, and the image's EXIF orientation.

    Raises:
        DataError: When it is missing or damaged, or has 32-bit or floating-point pixels.
    """
    if bands is not None:
        stored = read_header(path, data, channels=bands.channels)  # `find_facts` decodes the pixels
        return Inspection(stored.size, digest=_digest(path, data) if decode else None), stored.orientation
    with open_image(path, data) as image:
        check_image_mode(image, path)
        found, orientation = Inspection(upright_size(image)), exif_orientation(image)
        if decode:
            # Decoding a JPEG at an eighth of its size still reads every byte, so it finds a truncated file at a third
            # of the cost.
            image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
            peak = int(np.asarray(image).max()) if image.mode.startswith("I") else None
            found = found._replace(peak=peak, mean=_mean(image), digest=_digest(path, data))
    return found, orientation


def _mean(image: Image.Image) -> tuple[float, float, float]:
    """The mean red, green and blue of a decoded image, to a whole number."""
    picture = Image.fromarray(to_rgb(image)) if image.mode.startswith(("I", "P")) else image.convert("RGB")
    red, green, blue = picture.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
    return float(red), float(green), float(blue)


def _digest(path: Path, data: bytes | None) -> str:
    with path.open("rb") if data is None else io.BytesIO(data) as file:
        return hashlib.file_digest(file, partial(hashlib.blake2b, digest_size=16)).hexdigest()


def read_file(path: Path) -> bytes:
    """Read the bytes of an image file.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        DataError: When it can't be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}. Restore it, or remove its pair.") from error


def _extension(path: Path, data: bytes) -> str:
    """The file name extension of an encoded image: that of its path, or else of its format."""
    if path.suffix:
        return path.suffix.lower()
    if data.startswith((b"II", b"MM")):  # Pillow can't read every TIFF
        return ".tif"
    with open_image(path, data) as image:
        return f".{image.format.lower()}"
