"""Pseudo-labels: predictions as masks to train on, with the deepest class that is sure enough, or ignored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from seghiero_core.atomic import make_folder, temporary_name, write_new_files
from seghiero_core.decode_modes import undecided_id
from seghiero_core.errors import UsageError
from seghiero_core.events import Notify, ignore_events
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.hierarchy.values import LARGEST_VALUE
from seghiero_core.model.tiling import Picture
from seghiero_core.predict.outputs import OutputWriter
from seghiero_core.predict.piece import Piece, RowJoiner
from seghiero_core.predict.png import PngWriter
from seghiero_core.predict.raster_files import RasterFiles

CLASSES_NAME = "classes.yaml"


def mask_values(hierarchy: Hierarchy) -> np.ndarray:
    """Choose a mask value for every node.

    Args:
        hierarchy: The classes, with N nodes.

    Returns:
        (N) int64: the node's own mask value; for nodes without one, the smallest values that are free.

    Raises:
        UsageError: When the values of 16 bits don't suffice.
    """
    values = np.full(len(hierarchy), -1, dtype=np.int64)
    for value, label in hierarchy.values.items():
        if label < len(hierarchy):
            values[label] = value
    taken = {*hierarchy.values, hierarchy.ignore}
    free = [value for value in range(len(hierarchy) + len(taken)) if value not in taken]
    without = np.flatnonzero(values < 0)
    values[without] = free[: len(without)]
    if values.max() > LARGEST_VALUE:
        raise UsageError(f"the {len(hierarchy)} classes and groups have no room in masks of 16 bits.")
    return values


@dataclass(frozen=True)
class PseudoLabels:
    """One mask of label values per image, for `predict_files`; the predictor needs a threshold.

    Attributes:
        hierarchy: The classes.
        scores: False: the scores of all classes are not needed.
    """

    hierarchy: Hierarchy
    scores: bool = False

    @cached_property
    def values(self) -> np.ndarray:
        """(N) int64: the mask value of every node, see `mask_values`."""
        return mask_values(self.hierarchy)

    def paths(self, stem: Path, *, raster: bool = False) -> list[Path]:
        """List the files of an image.

        Args:
            stem: Their path without an ending.
            raster: Whether the image is a raster.

        Returns:
            STEM.png, or STEM.tif for a raster.
        """
        return [stem.with_name(f"{stem.name}.{'tif' if raster else 'png'}")]

    def open(
        self, stem: Path, picture: Picture, made_by: Mapping[str, Any], notify: Notify = ignore_events
    ) -> OutputWriter:
        """Begin the mask of an image, or go on with that of a raster.

        Args:
            stem: Its path without an ending.
            picture: The image.
            made_by: See `Unfinished`.
            notify: See `Unfinished`.

        Returns:
            Its writer.
        """
        path = self.paths(stem, raster=picture.raster is not None)[0]
        labels = _Labels(self.hierarchy, self.values)
        if picture.raster is None:
            return PseudoLabelWriter(path, labels, picture)
        return _RasterLabelWriter(path, stem, labels, picture, made_by, notify)


class _Labels:
    """Turns pieces into mask values: of the deepest class that passed the threshold, or the ignore value.

    Attributes:
        dtype: uint8 or uint16.
        colors: 256,3 uint8, the color of each value; None for 16 bits.
        counts: By level, how many pixels have a class.
    """

    def __init__(self, hierarchy: Hierarchy, values: np.ndarray) -> None:
        self.hierarchy = hierarchy
        self.tables = [values[list(level.nodes)] for level in hierarchy.levels]
        self.counts = np.zeros(len(hierarchy.levels), dtype=np.int64)
        self.dtype, self.colors = np.uint16, None
        if max(values.max(), hierarchy.ignore) <= 255:
            self.dtype, self.colors = np.uint8, np.zeros((256, 3), dtype=np.uint8)
            self.colors[values] = hierarchy.colors

    def of(self, piece: Piece) -> np.ndarray:
        undecided = undecided_id(self.hierarchy)
        rows = np.full(piece.size, self.hierarchy.ignore, dtype=self.dtype)
        for level in reversed(range(len(self.tables))):  # the finest that is decided on comes last
            decided = piece.ids[level] != undecided
            rows[decided] = self.tables[level][piece.ids[level][decided]]
            self.counts[level] += np.count_nonzero(decided)
        return rows

    def measures(self, picture: Picture, path: Path) -> dict[str, Any]:
        names = [level.name for level in self.hierarchy.levels]
        labeled = dict(zip(names, self.counts.tolist(), strict=True))
        return {"pixels": picture.height * picture.width, "labeled": labeled, "files": [str(path)]}


class PseudoLabelWriter:
    """Writes one mask as a PNG, with the class colors as its palette; 16-bit gray where a value is above 255.

    Args:
        path: The file; missing folders are created.
        labels: What makes the values.
        picture: The image.
    """

    def __init__(self, path: Path, labels: _Labels, picture: Picture):
        self.path, self.partial, self.labels, self.picture = path, temporary_name(path), labels, picture
        self.joiner = RowJoiner(picture.width)
        make_folder(path.parent)
        kind = "gray16" if labels.colors is None else "palette"
        self.png = PngWriter(self.partial, picture.height, picture.width, kind, labels.colors)

    def write(self, piece: Piece, image: np.ndarray) -> None:
        """Add the next piece.

        Args:
            piece: The piece.
            image: The same part of the image, h,w,3 uint8; not used.
        """
        if rows := self.joiner.add(piece.left, [self.labels.of(piece)]):
            self.png.write(rows[0])

    def commit(self) -> dict[str, Any]:
        """Give the file its name.

        Returns:
            "pixels", "labeled" {level: pixels with a class at the level} and "files" [path].
        """
        self.png.finish()
        self.partial.replace(self.path)
        return self.labels.measures(self.picture, self.path)

    def suspend(self) -> None:
        """Do what `discard` does: the image is predicted again."""
        self.discard()

    def discard(self) -> None:
        """Close and remove what is unfinished."""
        self.png.abort()
        self.partial.unlink(missing_ok=True)


class _RasterLabelWriter:
    """Writes one mask as a GeoTIFF; as `PseudoLabelWriter`, but a later process can go on with what is unfinished."""

    def __init__(
        self, path: Path, stem: Path, labels: _Labels, picture: Picture, made_by: Mapping[str, Any], notify: Notify
    ) -> None:
        self.path, self.labels, self.picture = path, labels, picture
        ignore = labels.hierarchy.ignore
        self.files = RasterFiles(stem, picture, [path], [labels.colors], labels.dtype, ignore, made_by, notify)
        self.start = self.files.start
        if self.files.kept is not None:
            labels.counts += self.files.kept["counts"]

    def write(self, piece: Piece, image: np.ndarray) -> None:
        is_whole = piece.size == (self.picture.height, self.picture.width)
        if self.files.write(piece.left, [self.labels.of(piece)]) and not is_whole:
            self.files.keep({"counts": self.labels.counts.tolist()})

    def commit(self) -> dict[str, Any]:
        self.files.finish()
        self.files.remove()
        return self.labels.measures(self.picture, self.path)

    def suspend(self) -> None:
        self.files.suspend()

    def discard(self) -> None:
        self.files.remove()


def write_classes(folder: Path, hierarchy: Hierarchy, made_by: dict[str, Any]) -> Path:
    """Write classes.yaml: the labels of the masks as a `classes` section, and how the masks were made.

    Args:
        folder: The folder of the masks.
        hierarchy: The classes.
        made_by: Plain values: the checkpoint and the options.

    Returns:
        The path.

    Raises:
        UsageError: When the folder has a classes.yaml that says something else: masks made in two ways would be mixed.
    """
    path = folder / CLASSES_NAME
    labels: dict[int, Any] = {int(value): hierarchy.nodes[node] for node, value in enumerate(mask_values(hierarchy))}
    for value, label in hierarchy.values.items():
        if label >= len(hierarchy):
            labels[value] = [hierarchy.nodes[leaf] for leaf in hierarchy.sets[label - len(hierarchy)]]
    classes = {"labels": dict(sorted(labels.items())), "tree": _plain(hierarchy.tree), "ignore": hierarchy.ignore}
    document = {"made_by": made_by, "classes": classes}
    if path.exists():
        if _read(path) != document:
            raise UsageError(f"{path} belongs to masks that were made in another way; choose another folder.")
        return path
    write_new_files({path: yaml.safe_dump(document, sort_keys=False, allow_unicode=True)})
    return path


def _plain(tree: Any) -> dict[str, Any]:
    """The tree as a config has it, with nothing below a leaf."""
    return {name: _plain(children) or None for name, children in tree.items()}


def _read(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError):
        return None
