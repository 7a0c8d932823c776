"""The files of one image's prediction, written strip by strip under temporary names and renamed when complete."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from seghiero_core.atomic import make_folder, temporary_name, write_new_files
from seghiero_core.errors import UsageError
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.predict.png import PngWriter
from seghiero_core.predict.strip import Strip

LEGEND_NAME = "classes.json"
CHUNK_ROWS = 128
"""Rows that are processed at once, to keep temporary arrays small compared to a strip."""


def output_paths(stem: Path, hierarchy: Hierarchy, *, probabilities: bool) -> list[Path]:
    """List the files that a prediction is written to.

    Args:
        stem: Their path without an ending.
        hierarchy: The classes.
        probabilities: Include the file of scores.

    Returns:
        STEM.LEVEL.png for every level, STEM.overlay.png and, with `probabilities`, STEM.npz.
    """
    endings = [f"{level.name}.png" for level in hierarchy.levels]
    endings.append("overlay.png")
    if probabilities:
        endings.append("npz")
    return [stem.with_name(f"{stem.name}.{ending}") for ending in endings]


def check_legend(folder: Path) -> None:
    """Check that `write_legend` would replace no file of another kind.

    Args:
        folder: Where the legend goes.

    Raises:
        UsageError: When it would.
    """
    path = folder / LEGEND_NAME
    if not path.exists():
        return
    try:
        is_legend = json.loads(path.read_text(encoding="utf-8")).keys() >= {"levels", "undecided"}
    except (ValueError, AttributeError):
        is_legend = False
    if not is_legend:
        raise UsageError(f"{path} was not written by seghiero and would be replaced; choose another folder.")


def write_legend(folder: Path, hierarchy: Hierarchy, undecided: int | None) -> Path:
    """Write classes.json, which maps ids to class names and colors.

    Args:
        folder: Where to write it. An existing legend is replaced.
        hierarchy: The classes.
        undecided: See `Predictor.undecided`.

    Returns:
        The path. The file holds {"levels": {level: [names in the order of the ids]}, "colors": {level: ["#rrggbb" in
        the same order]}, "undecided": id or null}.
    """
    names, colors = {}, {}
    for number, level in enumerate(hierarchy.levels):
        names[level.name] = list(hierarchy.level_names(number))
        colors[level.name] = ["#{:02x}{:02x}{:02x}".format(*color) for color in hierarchy.colors[list(level.nodes)]]
    text = json.dumps({"levels": names, "colors": colors, "undecided": undecided}, indent=1, ensure_ascii=False)
    path = folder / LEGEND_NAME
    write_new_files({path: text}, force=True)
    return path


def level_colors(hierarchy: Hierarchy, undecided: int | None) -> list[np.ndarray]:
    """Look up the colors of all ids.

    Args:
        hierarchy: The classes.
        undecided: See `Predictor.undecided`; its color is black.

    Returns:
        N,3 uint8 per level, finest first.
    """
    return [_pad_colors(hierarchy.colors[list(level.nodes)], undecided) for level in hierarchy.levels]


def blend(
    image: np.ndarray, level_ids: Sequence[np.ndarray], colors: Sequence[np.ndarray], undecided: int | None
) -> np.ndarray:
    """Draw classes over an image.

    Args:
        image: H,W,3 uint8.
        level_ids: H,W ids per level, finest first.
        colors: What `level_colors` returned.
        undecided: See `Predictor.undecided`.

    Returns:
        H,W,3 uint8: half the image and half the color of the finest class that was decided on.
    """
    finest = colors[0][level_ids[0]]
    if undecided is not None:
        for level in range(1, len(level_ids)):
            is_open = level_ids[level - 1] == undecided
            finest[is_open] = colors[level][level_ids[level][is_open]]
    return (image >> 1) + (finest >> 1)


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

    def paths(self, stem: Path) -> list[Path]:
        """List the files of an image.

        Args:
            stem: Their path without an ending.

        Returns:
            What `output_paths` returns.
        """
        return output_paths(stem, self.hierarchy, probabilities=self.scores)

    def open(self, stem: Path, height: int, width: int) -> PredictionWriter:
        """Begin the files of an image.

        Args:
            stem: Their path without an ending.
            height, width: The size of the image, px.

        Returns:
            Their writer.
        """
        options = {"probabilities": self.scores, "undecided": self.undecided}
        return PredictionWriter(stem, self.hierarchy, height, width, **options)


class PredictionWriter:
    """Writes the files of one image: `commit` makes them appear, `discard` leaves nothing.

    - STEM.LEVEL.png holds the ids of a level, with the class colors as its palette; 16-bit gray where an id is above
      255.
    - STEM.overlay.png is half the image and half the color of the finest class that was decided on (black if none).
    - STEM.npz holds the scores C,H,W float16 of each level, by level name.

    Args:
        stem: The files' path without an ending; missing folders are created.
        hierarchy: The classes.
        height, width: The size of the image, px.
        probabilities: Write the scores; the strips have to have them.
        undecided: See `Predictor.undecided`.
    """

    def __init__(
        self,
        stem: Path,
        hierarchy: Hierarchy,
        height: int,
        width: int,
        *,
        probabilities: bool,
        undecided: int | None = None,
    ):
        levels = hierarchy.levels
        self.hierarchy, self.size, self.undecided = hierarchy, (height, width), undecided
        self.probabilities = probabilities
        self.paths = output_paths(stem, hierarchy, probabilities=probabilities)
        self.partial = [temporary_name(path) for path in self.paths]
        self.scores: list[np.ndarray] = []
        self.counts = [np.zeros(len(level.nodes), np.int64) for level in levels]
        self.confidence_sums = [0.0] * len(levels)
        self.colors = level_colors(hierarchy, undecided)
        make_folder(stem.parent)
        self.level_pngs: list[PngWriter] = []
        self.overlay_png: PngWriter | None = None
        try:
            for path, colors in zip(self.partial[: len(levels)], self.colors, strict=True):
                if len(colors) <= 256:
                    self.level_pngs.append(PngWriter(path, height, width, "palette", colors))
                else:
                    self.level_pngs.append(PngWriter(path, height, width, "gray16"))
            self.overlay_png = PngWriter(self.partial[len(levels)], height, width, "rgb")
        except BaseException:
            self.discard()
            raise

    def write(self, strip: Strip, image: np.ndarray) -> None:
        """Append a strip.

        Args:
            strip: The next rows of the prediction.
            image: The same rows of the image, h,W,3 uint8.
        """
        for top in range(0, len(image), CHUNK_ROWS):
            rows = slice(top, top + CHUNK_ROWS)
            for level, (ids, confidence) in enumerate(zip(strip.ids, strip.confidence, strict=True)):
                self.level_pngs[level].write(ids[rows])
                num_classes = len(self.counts[level])  # the id `undecided` comes after them
                self.counts[level] += np.bincount(ids[rows].ravel(), minlength=num_classes)[:num_classes]
                self.confidence_sums[level] += float(confidence[rows].sum(dtype=np.float64))
            level_ids = [ids[rows] for ids in strip.ids]
            self.overlay_png.write(blend(image[rows], level_ids, self.colors, self.undecided))
        if self.probabilities:
            self._write_scores(strip)

    def commit(self) -> dict[str, Any]:
        """Give the files their names.

        Returns:
            What was predicted: "shares" {level: {class: share of the pixels, 0..1}}, "confidence" {level: mean, 0..1},
            "files" [path] and, with a threshold, "undecided" {level: share of the pixels, 0..1}.
        """
        for png in (*self.level_pngs, self.overlay_png):
            png.finish()
        if self.probabilities:
            self._zip_scores()
        for partial, path in zip(self.partial, self.paths, strict=True):
            partial.replace(path)
        self.discard()
        return self._measures()

    def discard(self) -> None:
        """Close and remove what is unfinished."""
        self.scores.clear()
        for png in self.level_pngs:
            png.abort()
        if self.overlay_png is not None:
            self.overlay_png.abort()
        for path in self.partial:
            path.unlink(missing_ok=True)
        for level in range(len(self.hierarchy.levels)):
            self._scores_path(level).unlink(missing_ok=True)

    def _write_scores(self, strip: Strip) -> None:
        """Keep scores in files of their own until `commit`: they may be larger than memory."""
        if not self.scores:
            self.scores = [
                np.lib.format.open_memmap(self._scores_path(level), "w+", np.float16, (len(scores), *self.size))
                for level, scores in enumerate(strip.scores)
            ]
        for kept, scores in zip(self.scores, strip.scores, strict=True):
            kept[:, strip.top : strip.top + scores.shape[1]] = scores

    def _scores_path(self, level: int) -> Path:
        return self.partial[-1].with_name(f"{self.partial[-1].name}.{level}")

    def _zip_scores(self) -> None:
        with zipfile.ZipFile(self.partial[-1], "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for number, level in enumerate(self.hierarchy.levels):
                self.scores[number].flush()
                archive.write(self._scores_path(number), f"{level.name}.npy")

    def _measures(self) -> dict[str, Any]:
        pixels = self.size[0] * self.size[1]
        shares, confidence, undecided = {}, {}, {}
        for number, level in enumerate(self.hierarchy.levels):
            names, counts = self.hierarchy.level_names(number), self.counts[number]
            shares[level.name] = {name: int(count) / pixels for name, count in zip(names, counts, strict=True)}
            confidence[level.name] = self.confidence_sums[number] / pixels
            undecided[level.name] = 1 - int(counts.sum()) / pixels
        measures = {"shares": shares, "confidence": confidence, "files": [str(path) for path in self.paths]}
        if self.undecided is not None:
            measures["undecided"] = undecided
        return measures


def _pad_colors(colors: np.ndarray, undecided: int | None) -> np.ndarray:
    """The colors N,3 of a level, followed by black up to the id `undecided`."""
    missing = 0 if undecided is None else max(0, undecided + 1 - len(colors))
    return np.concatenate([colors, np.zeros((missing, 3), colors.dtype)])
