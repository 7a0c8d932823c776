"""Rasters: TIFF files with a georeference, or too large to be read whole, which are read by windows.

rasterio reads them if it is installed, otherwise tifffile; both are in `seghiero[rasters]`. Their masks are rasters,
too, with the same georeference (see `geotiff`).
"""

from __future__ import annotations

import logging
import struct
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from seghiero_core.errors import DataError, SeghieroError, UsageError
from seghiero_core.model.tiling import Picture
from seghiero_core.predict.display import Display
from seghiero_core.predict.layout import SampleLayout
from seghiero_core.predict.windows import Block, RasterioReader, TifffileReader, Windows
from seghiero_core.readers import Bands

RASTER_PIXELS = 1 << 26
"""TIFF files without a georeference are rasters above this many pixels; smaller ones are read like other images."""
GEOREFERENCE_TAGS = (33550, 33922, 34264, 34735, 34736, 34737, 50844)
"""ModelPixelScale, ModelTiepoint, ModelTransformation, GeoKeyDirectory, GeoDoubleParams, GeoAsciiParams and
RPCCoefficient (OGC 19-008r4, GeoTIFF 1.1)."""
_CLASSIC, _BIG = (b"II*\0", b"MM\0*"), (b"II+\0", b"MM\0+")
_REDUCED, _MASK = 1, 4  # bits of the tag NewSubfileType
_SAMPLED, _SAMPLE = 8, 32  # an overlay shows the span of values in 8x8 windows of 32x32 px

for _library in ("tifffile", "rasterio"):  # what is wrong is raised, too
    logging.getLogger(_library).addHandler(logging.NullHandler())


@dataclass(frozen=True)
class Raster:
    """What is known of an open raster besides its pixels.

    Attributes:
        path: The file.
        georeference: The GeoTIFF tags of the file, as `tifffile.TiffWriter.write` takes them.
        dataset: The open `rasterio` dataset, or None without rasterio.
    """

    path: Path
    georeference: list[tuple[int, int, int, Any, bool]]
    dataset: Any = None


def is_raster(path: Path) -> bool:
    """Tell whether a file is a raster, from its first bytes.

    Args:
        path: Any file.

    Returns:
        True for a BigTIFF file, and for a TIFF file that has a georeference or more than RASTER_PIXELS.
    """
    try:
        with path.open("rb") as file:
            start = file.read(8)
            if start[:4] in _BIG:
                return True
            if start[:4] not in _CLASSIC:
                return False
            order = "<" if start[:2] == b"II" else ">"
            file.seek(struct.unpack(f"{order}I", start[4:])[0])
            (count,) = struct.unpack(f"{order}H", file.read(2))
            entries = [struct.unpack(f"{order}HHI4s", file.read(12)) for _ in range(count)]
    except (OSError, struct.error):
        return False  # whoever reads the image says what is wrong
    values = {
        tag: struct.unpack(f"{order}H2x" if kind == 3 else f"{order}I", value)[0] for tag, kind, _, value in entries
    }
    if not values.keys().isdisjoint(GEOREFERENCE_TAGS):
        return True
    return values.get(256, 0) * values.get(257, 0) > RASTER_PIXELS and values.get(274, 1) == 1


def open_raster(path: Path, bands: Bands | None = None) -> Picture:
    """Open a raster.

    Args:
        path: A file for which `is_raster` is true.
        bands: How to read it. Default: as 8-bit RGB.

    Returns:
        The image, whose blocks are decoded as windows of it are read.

    Raises:
        DataError: The file can't be read, holds several images, or has other pixels than the network takes.
        UsageError: tifffile isn't installed.
    """
    try:
        import tifffile
    except ImportError:
        raise UsageError(
            f"{path} is a raster, which needs the package tifffile; install it with `pip install 'seghiero[rasters]'`."
        ) from None
    with _naming(path), ExitStack() as closing:
        tiff = closing.enter_context(tifffile.TiffFile(path))
        page = tiff.pages.first
        mask_page = _find_mask(path, tiff)
        layout = SampleLayout(path, page, bands)
        tags = [page.tags[code] for code in GEOREFERENCE_TAGS if code in page.tags]
        georeference = [(tag.code, int(tag.dtype), tag.count, tag.value, True) for tag in tags]
        dataset, read_mask = None, None
        if find_spec("rasterio"):
            reader = RasterioReader(path)
            dataset, read_mask = reader.dataset, reader.read_mask
        else:
            reader = TifffileReader(path, page)
            reader.check()
            if mask_page is not None:
                read_mask = TifffileReader(path, mask_page).read_mask
            weakref.finalize(reader, closing.pop_all().close)

        def decode(*block: int) -> Block:
            valid = None if mask_page is None else read_mask(*block)
            return layout.convert(reader.read(*block), valid)

        windows = Windows(page.imagelength, page.imagewidth, reader.block, decode)
    return Picture(
        windows.height,
        windows.width,
        _naming_errors(path, windows.pixels),
        _naming_errors(path, windows.valid) if layout.has_nodata or mask_page is not None else None,
        show=None if bands is None else Display(bands.rgb, lambda: _sample(windows)),
        raster=Raster(path, georeference, dataset),
    )


def _sample(windows: Windows) -> np.ndarray:
    """The pixels N,1,C of a few windows of a raster."""
    height, width = windows.height, windows.width
    rows, columns = (sorted({i * side // _SAMPLED for i in range(_SAMPLED)}) for side in (height, width))
    parts = [
        windows.pixels(top, min(top + _SAMPLE, height), left, min(left + _SAMPLE, width))
        for top in rows
        for left in columns
    ]
    return np.concatenate([part.reshape(-1, 1, part.shape[2]) for part in parts])


def _find_mask(path: Path, tiff: Any) -> Any:
    """The page that holds the mask of the first one, or None; overviews are passed over."""
    first, found = tiff.pages.first, None
    for page in tiff.pages[1:]:
        kind = int(page.subfiletype)
        if not kind & (_REDUCED | _MASK):
            raise DataError(
                f"{path} holds {len(tiff.pages)} images, or sub-datasets; save the one to predict in a file of its own."
            )
        if kind & _MASK and page.shape[:2] == (first.imagelength, first.imagewidth):
            found = page
    return found


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn the errors of the libraries, which are of nearly every type, into one that names the file."""
    try:
        yield
    except (SeghieroError, MemoryError):
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(f"{path} can't be read ({reason}). Replace the file, or remove it from the inputs.") from error


def _naming_errors(path: Path, read: Callable[[int, int, int, int], np.ndarray]) -> Callable[..., np.ndarray]:
    def read_window(top: int, bottom: int, left: int, right: int) -> np.ndarray:
        with _naming(path):
            return read(top, bottom, left, right)

    return read_window
