"""The files of one image's prediction, written under temporary names and renamed when complete."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from seghiero_core.atomic import make_folder, temporary_name
from seghiero_core.events import Notify, ignore_events
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.model.tiling import Picture
from seghiero_core.predict.legend import blend, level_colors
from seghiero_core.predict.outputs import OutputWriter
from seghiero_core.predict.picture import empty_id
from seghiero_core.predict.piece import Piece, RowJoiner
from seghiero_core.predict.png import PngWriter
from seghiero_core.predict.raster_writer import RasterWriter
from seghiero_core.predict.scores import ScoreFiles
from seghiero_core.predict.tally import Tally

CHUNK_ROWS = 128
"""Rows that are processed at once, to keep temporary arrays small."""


def output_paths(stem: Path, hierarchy: Hierarchy, *, probabilities: bool, raster: bool = False) -> list[Path]:
    """List the files that a prediction is written to.

    Args:
        stem: Their path without an ending.
        hierarchy: The classes.
        probabilities: Include the file of scores.
        raster: Whether the image is a raster.

    Returns:
        STEM.LEVEL.png for every level (of a raster .tif), STEM.overlay.png and, with `probabilities`, STEM.npz.
    """
    endings = [f"{level.name}.{'tif' if raster else 'png'}" for level in hierarchy.levels]
    endings.append("overlay.png")
    if probabilities:
        endings.append("npz")
    return [stem.with_name(f"{stem.name}.{ending}") for ending in endings]


@dataclass(frozen=True)
class PredictionOutputs:
    """The masks, overlay and scores of every image, for `predict_files`.

    Attributes:
        hierarchy: The classes.
        undecided: See `Predictor.undecided`.
        scores: Whether to write the scores of all classes.
    """

    hierarchy: Hierarchy
    undecided: int | None
    scores: bool = False

    def paths(self, stem: Path, *, raster: bool = False) -> list[Path]:
        """List the files of an image.

        Args:
            stem: Their path without an ending.
            raster: Whether the image is a raster.

        Returns:
            What `output_paths` returns.
        """
        return output_paths(stem, self.hierarchy, probabilities=self.scores, raster=raster)

    def open(
        self, stem: Path, picture: Picture, made_by: Mapping[str, Any], notify: Notify = ignore_events
    ) -> OutputWriter:
        """Begin the files of an image, or go on with those of a raster.

        Args:
            stem: Their path without an ending.
            picture: The image.
            made_by: Plain values that decide on the prediction of a raster, see `Unfinished`.
            notify: Receives the events of `Unfinished`.

        Returns:
            Their writer.
        """
        options = {"probabilities": self.scores, "undecided": self.undecided}
        if picture.raster is None:
            return PredictionWriter(stem, self.hierarchy, picture, **options)
        paths = self.paths(stem, raster=True)
        return RasterWriter(paths, stem, self.hierarchy, picture, made_by=made_by, notify=notify, **options)


class PredictionWriter:
    """Writes the files of one image: `commit` makes them appear, `discard` leaves nothing.

    - STEM.LEVEL.png holds the ids of a level, with the class colors as its palette; 16-bit gray where an id is above
      255.
    - STEM.overlay.png is half the image and half the color of the finest class that was decided on (black if none).
    - STEM.npz holds the scores C,H,W float16 of each level, by level name.

    Args:
        stem: The files' path without an ending; missing folders are created.
        hierarchy: The classes.
        picture: The image.
        probabilities: Write the scores; the pieces have to have them.
        undecided: See `Predictor.undecided`.
    """

    def __init__(
        self,
        stem: Path,
        hierarchy: Hierarchy,
        picture: Picture,
        *,
        probabilities: bool,
        undecided: int | None = None,
    ):
        levels, height, width = hierarchy.levels, picture.height, picture.width
        self.hierarchy, self.undecided, self.probabilities = hierarchy, undecided, probabilities
        self.has_nodata, self.empty = picture.valid is not None, empty_id(hierarchy, undecided, picture)
        self.paths = output_paths(stem, hierarchy, probabilities=probabilities)
        self.partial = [temporary_name(path) for path in self.paths]
        kept = [self.partial[-1].with_name(f"{self.partial[-1].name}.{level}") for level in range(len(levels))]
        self.scores = ScoreFiles(kept, height, width)
        self.tally, self.joiner = Tally(hierarchy), RowJoiner(width)
        self.colors = level_colors(hierarchy, self.empty)
        make_folder(stem.parent)
        self.pngs: list[PngWriter] = []
        try:
            for path, colors in zip(self.partial[: len(levels)], self.colors, strict=True):
                if len(colors) <= 256:
                    self.pngs.append(PngWriter(path, height, width, "palette", colors))
                else:
                    self.pngs.append(PngWriter(path, height, width, "gray16"))
            self.pngs.append(PngWriter(self.partial[len(levels)], height, width, "rgb"))
        except BaseException:
            self.discard()
            raise

    def write(self, piece: Piece, image: np.ndarray) -> None:
        """Add the next piece.

        Args:
            piece: The piece.
            image: The same part of the image, h,w,3 uint8.
        """
        self.tally.add(piece)
        if self.probabilities:
            self.scores.write(piece)
        arrays = self.joiner.add(piece.left, [*piece.ids, image])
        if arrays is None:
            return
        for top in range(0, len(image), CHUNK_ROWS):
            *level_ids, rows = (array[top : top + CHUNK_ROWS] for array in arrays)
            for png, ids in zip(self.pngs, level_ids, strict=False):
                png.write(ids)
            self.pngs[-1].write(blend(rows, level_ids, self.colors, self.empty))

    def commit(self) -> dict[str, Any]:
        """Give the files their names.

        Returns:
            What was predicted: "shares" {level: {class: share of the pixels, 0..1}}, "confidence" {level: mean, 0..1},
            "files" [path]; with a threshold "undecided" {level: share of the pixels, 0..1}; and where pixels are
            without data "nodata", their share, 0..1. The other shares are of the pixels with data.
        """
        for png in self.pngs:
            png.finish()
        if self.probabilities:
            self.scores.zip(self.partial[-1], [level.name for level in self.hierarchy.levels])
        for partial, path in zip(self.partial, self.paths, strict=True):
            partial.replace(path)
        self.discard()
        measures = self.tally.measures(undecided=self.undecided is not None, nodata=self.has_nodata)
        return {**measures, "files": [str(path) for path in self.paths]}

    def suspend(self) -> None:
        """Do what `discard` does: the image is predicted again."""
        self.discard()

    def discard(self) -> None:
        """Close and remove what is unfinished."""
        for png in self.pngs:
            png.abort()
        for path in self.partial:
            path.unlink(missing_ok=True)
        self.scores.remove()
