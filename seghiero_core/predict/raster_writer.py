"""The files of a raster's prediction: GeoTIFF masks, a reduced overlay, and scores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from seghiero_core.atomic import replacing
from seghiero_core.decode_modes import undecided_id
from seghiero_core.events import Notify, ignore_events
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.model.tiling import Picture
from seghiero_core.predict.legend import blend, level_colors
from seghiero_core.predict.piece import Piece
from seghiero_core.predict.png import PngWriter
from seghiero_core.predict.raster_files import RasterFiles
from seghiero_core.predict.scores import ScoreFiles
from seghiero_core.predict.tally import Tally

OVERLAY_SIDE = 2048
"""The longer side of a raster's overlay is at most this, px: of larger rasters every n-th pixel is drawn."""
_OVERLAY_ROWS = 256  # encoded at once


class RasterWriter:
    """Writes the files of one raster. A process that stops can be followed by one that goes on where it was.

    - STEM.LEVEL.tif holds the ids of a level, with the class colors as its palette, and the raster's georeference.
    - STEM.overlay.png is as for other images, but reduced to OVERLAY_SIDE.
    - STEM.npz holds the scores, as for other images.

    Args:
        paths: The files: one per level, the overlay and, with `probabilities`, the scores.
        stem: Their path without an ending.
        hierarchy: The classes.
        picture: The raster.
        probabilities: Write the scores; the pieces have to have them.
        undecided: See `Predictor.undecided`.
        made_by: See `Unfinished`.
        notify: See `Unfinished`.

    Attributes:
        start: The first row to predict, px.
    """

    def __init__(
        self,
        paths: list[Path],
        stem: Path,
        hierarchy: Hierarchy,
        picture: Picture,
        *,
        probabilities: bool,
        undecided: int | None,
        made_by: Mapping[str, Any],
        notify: Notify = ignore_events,
    ) -> None:
        self.hierarchy, self.picture, self.undecided, self.probabilities = hierarchy, picture, undecided, probabilities
        self.paths, levels = paths, len(hierarchy.levels)
        self.empty = undecided_id(hierarchy)
        self.colors = level_colors(hierarchy, self.empty)
        dtype, shown = (np.uint8, self.colors) if self.empty <= 255 else (np.uint16, [None] * levels)
        made_by = {**made_by, "probabilities": probabilities}
        self.files = RasterFiles(stem, picture, paths[:levels], shown, dtype, self.empty, made_by, notify)
        self.start = self.files.start
        self.tally = Tally(hierarchy, self.files.kept)
        folder, size = self.files.folder, (picture.height, picture.width)
        self.scores = ScoreFiles([folder / f"{i}.npy" for i in range(levels)], *size)
        self.overlay = _Overlay(folder / "overlay.rows", *size, self.start)

    def write(self, piece: Piece, image: np.ndarray) -> None:
        """Add the next piece.

        Args:
            piece: The piece.
            image: The same part of the image, h,w,3 uint8.
        """
        self.tally.add(piece)
        self.overlay.add(piece, image, self.colors, self.empty)
        if self.probabilities:
            self.scores.write(piece)
        if self.files.write(piece.left, list(piece.ids)):
            self.overlay.flush()
            if piece.size != (self.picture.height, self.picture.width):
                self.files.keep(self.tally.state())

    def commit(self) -> dict[str, Any]:
        """Give the files their names.

        Returns:
            As `PredictionWriter.commit`, and "nodata": the share of the pixels without data, 0..1.
        """
        levels = len(self.hierarchy.levels)
        self.overlay.save(self.paths[levels])
        if self.probabilities:
            with replacing(self.paths[-1]) as path:
                self.scores.zip(path, [level.name for level in self.hierarchy.levels])
        self.files.finish()
        self.discard()
        measures = self.tally.measures(undecided=self.undecided is not None, nodata=True)
        return {**measures, "files": [str(path) for path in self.paths]}

    def suspend(self) -> None:
        """Close what is unfinished; a later process can go on from it."""
        self.overlay.file.close()
        self.files.suspend()

    def discard(self) -> None:
        """Remove what is unfinished."""
        self.overlay.file.close()
        self.files.remove()


class _Overlay:
    """Every n-th pixel of an overlay, kept as raw rows until it is complete."""

    def __init__(self, path: Path, height: int, width: int, start: int) -> None:
        self.path, self.height, self.width = path, height, width
        self.step = -(-max(height, width) // OVERLAY_SIDE)
        self.row_bytes = 3 * -(-width // self.step)
        self.rows = np.empty((0, self.row_bytes // 3, 3), np.uint8)
        self.file = path.open("r+b" if start else "wb")
        self.file.truncate(-(-start // self.step) * self.row_bytes)
        self.file.seek(0, 2)

    def add(self, piece: Piece, image: np.ndarray, colors: list[np.ndarray], empty: int) -> None:
        rows, columns = (slice(-first % self.step, None, self.step) for first in (piece.top, piece.left))
        drawn = blend(image[rows, columns], [ids[rows, columns] for ids in piece.ids], colors, empty)
        if piece.left == 0:
            self.rows = np.empty((len(drawn), *self.rows.shape[1:]), np.uint8)
        left = -(-piece.left // self.step)
        self.rows[:, left : left + drawn.shape[1]] = drawn

    def flush(self) -> None:
        """Write the rows, which are complete."""
        self.file.write(self.rows)
        self.file.flush()

    def save(self, path: Path) -> None:
        """Write the complete overlay as a PNG."""
        self.file.close()
        height, width = -(-self.height // self.step), self.row_bytes // 3
        with replacing(path) as temporary, self.path.open("rb") as file:
            png = PngWriter(temporary, height, width, "rgb")
            try:
                while data := file.read(_OVERLAY_ROWS * self.row_bytes):
                    png.write(np.frombuffer(data, np.uint8).reshape(-1, width, 3))
                png.finish()
            finally:
                png.abort()
