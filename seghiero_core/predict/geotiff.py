"""Writing masks as tiled, compressed GeoTIFF files, larger than memory if need be.

The compressed tiles are appended to a file as rows of pixels arrive; the TIFF is written around them at the end. So a
process that is killed loses only what came after the last `MaskTiles.state`.
"""

from __future__ import annotations

import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from seghiero_core.predict.raster import Raster
from seghiero_core.version import __version__

TILE = 512
"""Side of the tiles in a mask, px."""
_NODATA = 42113
_DEFLATE = 8
_CLASSIC_BYTES = 2**32 - 2**25  # larger files need BigTIFF


class MaskTiles:
    """The tiles of a mask, compressed one by one into a file of their own.

    Args:
        path: That file.
        height, width: The size of the mask, px.
        dtype: uint8 or uint16.
        fill: What pads the tiles at the right and the bottom.
        state: What `state` returned, to go on from; the file is cut to what it held then.
    """

    def __init__(
        self, path: Path, height: int, width: int, dtype: type, fill: int, state: dict[str, np.ndarray] | None = None
    ) -> None:
        self.path, self.height, self.width, self.fill = path, height, width, fill
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.lengths: list[int] = [] if state is None else state["lengths"].tolist()
        self.rest = np.empty((0, width), self.dtype) if state is None else state["rest"]
        self.rows = len(self.rest) + len(self.lengths) // -(-width // TILE) * TILE
        self.file = path.open("wb" if state is None else "r+b")
        self.file.truncate(sum(self.lengths))
        self.file.seek(0, 2)

    def write(self, rows: np.ndarray) -> None:
        """Append rows.

        Args:
            rows: h,W whole numbers.
        """
        self.rows += len(rows)
        rows = np.concatenate([self.rest, rows.astype(self.dtype, copy=False)])
        complete = len(rows) if self.rows == self.height else len(rows) // TILE * TILE
        for top in range(0, complete, TILE):
            for left in range(0, self.width, TILE):
                tile = np.full((TILE, TILE), self.fill, self.dtype)
                part = rows[top : top + TILE, left : left + TILE]
                tile[: part.shape[0], : part.shape[1]] = part
                self.lengths.append(self.file.write(zlib.compress(tile)))
        self.rest = rows[complete:].copy()

    def state(self) -> dict[str, np.ndarray]:
        """Flush the file.

        Returns:
            What is needed to go on later: the "lengths" of the compressed tiles in bytes, and the "rest" h,W: the rows
            that don't fill a row of tiles yet.
        """
        self.file.flush()
        return {"lengths": np.array(self.lengths, np.int64), "rest": self.rest}

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def save(self, path: Path, raster: Raster, colors: np.ndarray | None) -> None:
        """Write the complete mask as a GeoTIFF.

        Args:
            path: The file to write.
            raster: The image that was predicted, whose georeference it gets.
            colors: N,3 uint8, the color of each value; None for gray.
        """
        import tifffile

        self.close()
        options: dict[str, Any] = {"photometric": "minisblack"}
        if colors is not None:
            table = np.zeros((3, 256), np.uint16)
            table[:, : len(colors)] = colors.T * np.uint16(257)
            options = {"photometric": "palette", "colormap": table}
        tags = [*raster.georeference, (_NODATA, 2, 0, str(self.fill), True)]
        with (
            self.path.open("rb") as file,
            tifffile.TiffWriter(path, bigtiff=sum(self.lengths) > _CLASSIC_BYTES, byteorder="<") as tiff,
        ):
            tiff.write(
                (file.read(length) for length in self.lengths),
                shape=(self.height, self.width),
                dtype=self.dtype,
                tile=(TILE, TILE),
                compression=_DEFLATE,
                metadata=None,
                software=f"seghiero {__version__}",
                extratags=tags,
                **options,
            )
        if raster.dataset is not None:
            _complete_georeference(path, raster.dataset)


def _complete_georeference(path: Path, source: Any) -> None:
    """Add what rasterio knows from files beside the raster, such as world files."""
    import rasterio

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "r+") as mask:
            if source.gcps[0] and not mask.gcps[0]:
                mask.gcps = source.gcps
            elif mask.transform != source.transform:
                mask.transform = source.transform
            if source.crs and mask.crs != source.crs:
                mask.crs = source.crs
            if source.rpcs and not mask.rpcs:
                mask.rpcs = source.rpcs
