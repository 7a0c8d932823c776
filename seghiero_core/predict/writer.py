"""The files of one image's prediction, written strip by strip under temporary names and renamed when complete."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from seghiero_core.atomic import temporary_name, write_new_files
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.predict.png import PngWriter
from seghiero_core.predict.predictor import Strip

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


def write_legend(folder: Path, hierarchy: Hierarchy, undecided: int | None) -> None:
    """Write classes.json: {"levels": {level: [class names in the order of the ids]}, "undecided": id or null}.

    Args:
        folder: Where to write it. An existing file is replaced.
        hierarchy: The classes.
        undecided: See `Predictor.undecided`.
    """
    names = {level.name: list(hierarchy.level_names(number)) for number, level in enumerate(hierarchy.levels)}
    text = json.dumps({"levels": names, "undecided": undecided}, indent=1, ensure_ascii=False)
    write_new_files({folder / "classes.json": text}, force=True)


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
        self.colors = [_pad_colors(hierarchy.colors[list(level.nodes)], undecided) for level in levels]
        stem.parent.mkdir(parents=True, exist_ok=True)
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
            colors = self._finest_colors([ids[rows] for ids in strip.ids])
            self.overlay_png.write((image[rows] >> 1) + (colors >> 1))
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

    def _finest_colors(self, level_ids: list[np.ndarray]) -> np.ndarray:
        """h,W,3 uint8: the color of the finest class that was decided on."""
        colors = self.colors[0][level_ids[0]]
        if self.undecided is not None:
            for level in range(1, len(level_ids)):
                is_open = level_ids[level - 1] == self.undecided
                colors[is_open] = self.colors[level][level_ids[level][is_open]]
        return colors

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
