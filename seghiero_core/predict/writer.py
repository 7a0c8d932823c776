"""The files of one image's prediction, written strip by strip under temporary names and renamed when whole."""

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

CHUNK = 128
"""Rows that are worked on at once, so that what is needed meanwhile stays small beside a strip."""


def output_paths(stem: Path, hierarchy: Hierarchy, *, probabilities: bool) -> list[Path]:
    """STEM.LEVEL.png for every level, STEM.overlay.png and, if asked, STEM.npz."""
    endings = [f"{level.name}.png" for level in hierarchy.levels] + ["overlay.png"] + ["npz"] * probabilities
    return [stem.with_name(f"{stem.name}.{ending}") for ending in endings]


def write_legend(folder: Path, hierarchy: Hierarchy, undecided: int | None) -> None:
    """Write classes.json: {"levels": {level: [class names, by number]}, "undecided": number or null}."""
    names = {level.name: list(hierarchy.level_names(number)) for number, level in enumerate(hierarchy.levels)}
    text = json.dumps({"levels": names, "undecided": undecided}, indent=1, ensure_ascii=False)
    write_new_files({folder / "classes.json": text}, force=True)


class PredictionWriter:
    """Receives the strips of one image; `commit` makes the files appear, `discard` leaves nothing.

    An index PNG holds class numbers of its level, and `undecided` (see `decodings.undecided_id`) where the prediction
    backed off: with a palette of the class colours where all that fits 8 bits, else 16-bit. The overlay is half the
    image and half the colour of the deepest class that was decided on, black where none was. The .npz holds, by level
    name, the scores C,H,W as float16.
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
        self.hierarchy, self.size, self.undecided = hierarchy, (height, width), undecided
        self.paths = output_paths(stem, hierarchy, probabilities=probabilities)
        self.partial = [temporary_name(path) for path in self.paths]
        self.probabilities = probabilities
        self.scores: list[np.ndarray] = []
        self.counts = [np.zeros(len(level.nodes), np.int64) for level in hierarchy.levels]
        self.confidence = [0.0] * len(hierarchy.levels)
        entries = 0 if undecided is None else undecided + 1  # black above the classes
        self.colors = [_padded(hierarchy.colors[list(level.nodes)], entries) for level in hierarchy.levels]
        stem.parent.mkdir(parents=True, exist_ok=True)
        self.writers: list[PngWriter] = []  # one per level, then the overlay's
        try:
            for colors, path in zip(self.colors, self.partial, strict=False):
                kind = "palette" if len(colors) <= 256 else "gray16"
                self.writers.append(PngWriter(path, height, width, kind, colors if kind == "palette" else None))
            self.writers.append(PngWriter(self.partial[len(self.colors)], height, width, "rgb"))
        except BaseException:
            self.discard()
            raise

    def write(self, strip: Strip, image: np.ndarray) -> None:
        """Write a strip and the same rows of the image, h,W,3 uint8."""
        for top in range(0, len(image), CHUNK):
            rows = slice(top, top + CHUNK)
            for level, (ids, confidence) in enumerate(zip(strip.ids, strip.confidence, strict=True)):
                self.writers[level].write(ids[rows])
                known = len(self.counts[level])
                self.counts[level] += np.bincount(ids[rows].ravel(), minlength=known)[:known]
                self.confidence[level] += float(confidence[rows].sum(dtype=np.float64))
            self.writers[-1].write((image[rows] >> 1) + (self._overlay([ids[rows] for ids in strip.ids]) >> 1))
        if strip.scores:
            self._keep_scores(strip)

    def _overlay(self, ids: list[np.ndarray]) -> np.ndarray:
        """h,W,3: the colours of the deepest classes."""
        colors = self.colors[0][ids[0]]
        if self.undecided is not None:
            for finer, coarser, of_coarser in zip(ids, ids[1:], self.colors[1:], strict=False):
                left = finer == self.undecided
                colors[left] = of_coarser[coarser[left]]
        return colors

    def _keep_scores(self, strip: Strip) -> None:
        # on disk, as they may be larger than memory
        if not self.scores:
            self.scores = [
                np.lib.format.open_memmap(self._scores_path(level), "w+", np.float16, (len(scores), *self.size))
                for level, scores in enumerate(strip.scores)
            ]
        for kept, scores in zip(self.scores, strip.scores, strict=True):
            kept[:, strip.top : strip.top + scores.shape[1]] = scores

    def _scores_path(self, level: int) -> Path:
        return self.partial[-1].with_name(f"{self.partial[-1].name}.{level}")

    def commit(self) -> dict[str, Any]:
        """Rename the files to their names and return what the image holds.

        That is {"shares": {level: {class: 0..1}}, "confidence": {level: mean}, "files": [path]}, and with a threshold
        {"undecided": {level: 0..1}}.
        """
        for writer in self.writers:
            writer.finish()
        levels = self.hierarchy.levels
        if self.probabilities:
            with zipfile.ZipFile(self.partial[-1], "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                for number, level in enumerate(levels):
                    self.scores[number].flush()
                    archive.write(self._scores_path(number), f"{level.name}.npy")
        for partial, path in zip(self.partial, self.paths, strict=True):
            partial.replace(path)
        self.discard()
        pixels = self.size[0] * self.size[1]
        open_shares = {
            level.name: 1 - int(counts.sum()) / pixels for level, counts in zip(levels, self.counts, strict=True)
        }
        return {
            "shares": {
                level.name: {
                    name: int(count) / pixels
                    for name, count in zip(self.hierarchy.level_names(number), self.counts[number], strict=True)
                }
                for number, level in enumerate(levels)
            },
            "confidence": {level.name: self.confidence[number] / pixels for number, level in enumerate(levels)},
            "files": [str(path) for path in self.paths],
        } | ({} if self.undecided is None else {"undecided": open_shares})

    def discard(self) -> None:
        """Remove what is unfinished."""
        self.scores.clear()
        for writer in self.writers:
            writer.file.close()
        for path in (*self.partial, *(self._scores_path(level) for level in range(len(self.hierarchy.levels)))):
            path.unlink(missing_ok=True)


def _padded(colors: np.ndarray, entries: int) -> np.ndarray:
    """N,3 with black rows up to `entries`, so that every id has one."""
    return np.concatenate([colors, np.zeros((max(0, entries - len(colors)), 3), colors.dtype)])
