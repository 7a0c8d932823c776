"""The masks of one raster: written row by row, kept when the process stops, and complete at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seghiero_core.atomic import temporary_name
from seghiero_core.events import Notify, ignore_events
from seghiero_core.model.tiling import Picture
from seghiero_core.predict.geotiff import MaskTiles
from seghiero_core.predict.piece import RowJoiner
from seghiero_core.predict.unfinished import Unfinished


class RasterFiles:
    """GeoTIFF masks of one raster, in the making.

    Args:
        stem: The path of the results without an ending.
        picture: The raster.
        paths: The files of the masks.
        colors: N,3 uint8 for each mask, the color of each value; None for gray.
        dtype: uint8 or uint16.
        nodata: The value of pixels without data.
        made_by: See `Unfinished`.
        notify: See `Unfinished`.

    Attributes:
        start: The first row that isn't finished, px.
        kept: The values that were last given to `keep`, maybe by an earlier process; None if there are none.
        folder: Where other files of the raster can be kept while they are unfinished.
    """

    def __init__(
        self,
        stem: Path,
        picture: Picture,
        paths: Sequence[Path],
        colors: Sequence[np.ndarray | None],
        dtype: type,
        nodata: int,
        made_by: Mapping[str, Any],
        notify: Notify = ignore_events,
    ) -> None:
        self.raster, self.paths, self.colors = picture.raster, paths, colors
        files = [path.name for path in paths]
        self.unfinished = Unfinished(stem, picture.raster.path, {**made_by, "files": files}, notify)
        self.folder = self.unfinished.folder
        values, arrays = self.unfinished.values, self.unfinished.arrays
        self.start, self.kept = (0, None) if values is None else (values["rows"], values["kept"])
        self.joiner = RowJoiner(picture.width)
        self.masks: list[MaskTiles] = []
        try:
            for i in range(len(paths)):
                state = None if values is None else {name: arrays[f"{name}{i}"] for name in ("lengths", "rest")}
                tiles = self.folder / f"{i}.tiles"
                self.masks.append(MaskTiles(tiles, picture.height, picture.width, dtype, nodata, state))
        except BaseException:
            self.suspend()
            raise

    def write(self, left: int, arrays: list[np.ndarray]) -> bool:
        """Add the values of a piece.

        Args:
            left: Its first column, px.
            arrays: h,w values for every mask.

        Returns:
            Whether it was the last of its rows.
        """
        rows = self.joiner.add(left, arrays)
        if rows is None:
            return False
        for mask, values in zip(self.masks, rows, strict=True):
            mask.write(values)
        return True

    def keep(self, kept: Mapping[str, Any]) -> None:
        """Keep what has been written, for a later process to go on from.

        Args:
            kept: Plain values that go with it.
        """
        arrays = {f"{name}{i}": array for i, mask in enumerate(self.masks) for name, array in mask.state().items()}
        self.unfinished.keep({"rows": self.masks[0].rows, "kept": kept}, arrays)

    def finish(self) -> None:
        """Write the masks under their names."""
        temporary = [temporary_name(path) for path in self.paths]
        try:
            for mask, path, colors in zip(self.masks, temporary, self.colors, strict=True):
                mask.save(path, self.raster, colors)
            for path, final in zip(temporary, self.paths, strict=True):
                path.replace(final)
        finally:
            for path in temporary:
                path.unlink(missing_ok=True)

    def suspend(self) -> None:
        """Close the files; what has been kept stays for a later process."""
        for mask in self.masks:
            mask.close()
        self.unfinished.release_or_remove()

    def remove(self) -> None:
        """Delete what has been kept."""
        for mask in self.masks:
            mask.close()
        self.unfinished.remove()
