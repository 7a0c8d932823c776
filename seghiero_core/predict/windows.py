"""Reading windows of a TIFF that may be larger than memory, with rasterio or with tifffile.

Both decode a file in blocks: its tiles, or some of its strips. `Windows` keeps the blocks of the last windows, so that
neighboring windows decode few blocks twice.
"""

from __future__ import annotations

import math
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seghiero_core.errors import DataError

KEPT_BYTES = 64 << 20
"""Decoded blocks that are kept, in bytes. A single window may need more, in a wide file of strips."""
GDAL_CACHE_BYTES = 16 << 20
"""What GDAL itself keeps; its default is 5 % of the memory."""
_SMALLEST_BLOCK = 256  # px; of smaller tiles, and of fewer rows in strips, several are decoded together
_LARGEST_STRIP = 1 << 29  # bytes that tifffile has to decode at once


class Block(NamedTuple):
    """A decoded block.

    Attributes:
        pixels: h,w,C.
        valid: h,w bool: which pixels hold data. None: all do.
    """

    pixels: np.ndarray
    valid: np.ndarray | None


class Windows:
    """Windows of an image that is decoded in blocks.

    Args:
        height, width: The size of the image, px.
        block: Height and width of the blocks, px; those at the bottom and right are smaller.
        decode: `decode(top, bottom, left, right)` reads a block.
    """

    def __init__(
        self, height: int, width: int, block: tuple[int, int], decode: Callable[[int, int, int, int], Block]
    ) -> None:
        self.height, self.width, self.block, self.decode = height, width, block, decode
        self.kept: OrderedDict[tuple[int, int], Block] = OrderedDict()
        self.bytes = 0

    def pixels(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """Read the pixels of a window.

        Args:
            top, bottom, left, right: The window, px.

        Returns:
            h,w,C: of the types of its blocks the one that holds the values of all.
        """
        blocks = self._blocks(top, bottom, left, right)
        dtype = np.result_type(*(block.pixels.dtype for block in blocks.values()))
        channels = next(iter(blocks.values())).pixels.shape[2]
        out = np.empty((bottom - top, right - left, channels), dtype)
        for (row, column), block in blocks.items():
            _paste(block.pixels, out, row * self.block[0] - top, column * self.block[1] - left)
        return out

    def valid(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """Tell which pixels of a window hold data.

        Args:
            top, bottom, left, right: The window, px.

        Returns:
            h,w bool.
        """
        blocks = self._blocks(top, bottom, left, right)
        out = np.ones((bottom - top, right - left), dtype=bool)
        for (row, column), block in blocks.items():
            if block.valid is not None:
                _paste(block.valid, out, row * self.block[0] - top, column * self.block[1] - left)
        return out

    def _blocks(self, top: int, bottom: int, left: int, right: int) -> dict[tuple[int, int], Block]:
        """The blocks that a window touches, by (row, column), decoded where they aren't kept."""
        height, width = self.block
        needed = {}
        for row in range(top // height, math.ceil(bottom / height)):
            for column in range(left // width, math.ceil(right / width)):
                block = self.kept.pop((row, column), None)
                if block is None:
                    y, x = row * height, column * width
                    block = self.decode(y, min(y + height, self.height), x, min(x + width, self.width))
                    self.bytes += _size(block)
                needed[row, column] = self.kept[row, column] = block
        while self.bytes > KEPT_BYTES and next(iter(self.kept)) not in needed:
            self.bytes -= _size(self.kept.popitem(last=False)[1])
        return needed


def _paste(array: np.ndarray, out: np.ndarray, y: int, x: int) -> None:
    """Copy the part of an array that lies in `out`, if its first pixel is to be at (y, x) there."""
    part = array[max(-y, 0) : len(out) - y, max(-x, 0) : out.shape[1] - x]
    out[max(y, 0) : max(y, 0) + len(part), max(x, 0) : max(x, 0) + part.shape[1]] = part


def _size(block: Block) -> int:
    return block.pixels.nbytes + (0 if block.valid is None else block.valid.nbytes)


class TifffileReader:
    """Decodes a page with tifffile: tiles and strips of the codecs that it has, and uncompressed rows.

    Args:
        path: The file, for messages.
        page: A `tifffile.TiffPage` of an open file.

    Attributes:
        block: Height and width of the blocks to read, px.
    """

    def __init__(self, path: Path, page: Any) -> None:
        self.path, self.page = path, page
        self.planes = page.samplesperpixel if page.planarconfig == 2 else 1
        self.rows_at: int | None = None  # where the rows begin, where they lie one after another
        if page.is_tiled:
            self.segment = (page.tilelength, page.tilewidth)
            self.block = tuple(_multiple(side) for side in self.segment)
            return
        self.segment = (min(page.rowsperstrip, page.imagelength), page.imagewidth)
        if page.compression == 1 and page.is_contiguous and page.bitspersample in (8, 16, 32, 64):
            self.rows_at = page.dataoffsets[0]
            self.block = (_SMALLEST_BLOCK, page.imagewidth)
            return
        self.block = (_multiple(self.segment[0]), page.imagewidth)
        decoded = math.prod(self.segment) * page.dtype.itemsize * page.samplesperpixel // self.planes
        if decoded > _LARGEST_STRIP:
            raise DataError(
                f"{path} is compressed in strips of {decoded >> 20} MiB, which tifffile would decode at once; install "
                "rasterio (`pip install 'seghiero[rasters]'`), or write the file in tiles."
            )

    def check(self) -> None:
        """Check that tifffile has the codec.

        Raises:
            DataError: When it doesn't.
        """
        try:
            self.page.decode(None, 0)
        except Exception as error:
            raise DataError(
                f"{self.path} can't be read by tifffile alone ({error}); install rasterio "
                "(`pip install 'seghiero[rasters]'`), or save the file with the compression deflate."
            ) from None

    def read(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """Decode a block.

        Args:
            top, bottom, left, right: The block, px.

        Returns:
            h,w,C, all samples as stored; 0, or the file's own nodata value, where the file has no data.
        """
        page = self.page
        if self.rows_at is not None:
            return self._rows(top, bottom)[:, left:right]
        out = np.full((bottom - top, right - left, page.samplesperpixel), page.nodata, page.dtype.newbyteorder("="))
        height, width = self.segment
        across = math.ceil(page.imagewidth / width)
        per_plane = across * math.ceil(page.imagelength / height)
        for plane in range(self.planes):
            samples = slice(plane, plane + 1) if self.planes > 1 else slice(None)
            for row in range(top // height, math.ceil(bottom / height)):
                for column in range(left // width, math.ceil(right / width)):
                    segment = self._segment(plane * per_plane + row * across + column)
                    if segment is not None:
                        _paste(segment, out[..., samples], row * height - top, column * width - left)
        return out

    def read_mask(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """Decode a block of a page that is a mask.

        Args:
            top, bottom, left, right: The block, px.

        Returns:
            h,w bool.
        """
        return self.read(top, bottom, left, right)[..., 0] != 0

    def _segment(self, index: int) -> np.ndarray | None:
        """A tile or strip h,w,C; None where the file has none."""
        count = self.page.databytecounts[index]
        if count == 0:
            return None
        file = self.page.parent.filehandle
        file.seek(self.page.dataoffsets[index])
        segment, _, _ = self.page.decode(file.read(count), index, jpegtables=self.page.jpegtables)
        return None if segment is None else segment[0]

    def _rows(self, top: int, bottom: int) -> np.ndarray:
        """Rows of an uncompressed file."""
        page, file = self.page, self.page.parent.filehandle
        dtype = page.dtype.newbyteorder(page.parent.byteorder)
        samples = page.samplesperpixel // self.planes
        row, planes = page.imagewidth * samples * dtype.itemsize, []
        for plane in range(self.planes):
            file.seek(self.rows_at + (plane * page.imagelength + top) * row)
            data = file.read((bottom - top) * row)
            planes.append(np.frombuffer(data, dtype).reshape(bottom - top, page.imagewidth, samples))
        array = planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)
        return array.astype(dtype.newbyteorder("="), copy=False)


class RasterioReader:
    """Decodes a file with rasterio, which has the codecs of GDAL.

    Args:
        path: The file.

    Attributes:
        block: Height and width of the blocks to read, px.
        dataset: The open `rasterio` dataset.
    """

    def __init__(self, path: Path) -> None:
        import rasterio

        with self._settings(), warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            self.dataset = rasterio.open(path, driver="GTiff")
        height, width = self.dataset.block_shapes[0]
        across = width if width == self.dataset.width else _multiple(width)
        self.block = (_multiple(height) if height < self.dataset.height else _SMALLEST_BLOCK, across)

    def read(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """Decode a block.

        Args:
            top, bottom, left, right: The block, px.

        Returns:
            h,w,C, all samples as stored.
        """
        with self._settings():
            return self.dataset.read(window=((top, bottom), (left, right))).transpose(1, 2, 0)

    def read_mask(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """Decode a block of the mask that the file keeps beside its bands.

        Args:
            top, bottom, left, right: The block, px.

        Returns:
            h,w bool.
        """
        with self._settings():
            return self.dataset.read_masks(1, window=((top, bottom), (left, right))) > 0

    @staticmethod
    def _settings() -> Any:
        import rasterio

        return rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE_BYTES)


def _multiple(side: int) -> int:
    """The smallest multiple of a side that is no smaller than _SMALLEST_BLOCK."""
    return side * math.ceil(_SMALLEST_BLOCK / side)
