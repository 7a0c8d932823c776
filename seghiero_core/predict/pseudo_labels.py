"""Pseudo-labels: predictions as masks to train on, with the deepest class that is sure enough, or ignored."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from seghiero_core.atomic import make_folder, temporary_name, write_new_files
from seghiero_core.decode_modes import undecided_id
from seghiero_core.errors import UsageError
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.hierarchy.values import LARGEST_VALUE
from seghiero_core.predict.png import PngWriter
from seghiero_core.predict.strip import Strip

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

    def paths(self, stem: Path) -> list[Path]:
        """List the files of an image.

        Args:
            stem: Their path without an ending.

        Returns:
            STEM.png.
        """
        return [stem.with_name(f"{stem.name}.png")]

    def open(self, stem: Path, height: int, width: int) -> PseudoLabelWriter:
        """Begin the mask of an image.

        Args:
            stem: Its path without an ending.
            height, width: The size of the image, px.

        Returns:
            Its writer.
        """
        return PseudoLabelWriter(self.paths(stem)[0], self.hierarchy, self.values, height, width)


class PseudoLabelWriter:
    """Writes one mask: the value of the deepest class that passed the threshold, or the ignore value.

    The mask has the class colors as its palette; where a value is above 255, it is 16-bit gray.

    Args:
        path: The file; missing folders are created.
        hierarchy: The classes, with N nodes.
        values: (N) the mask value of every node.
        height, width: The size of the image, px.
    """

    def __init__(self, path: Path, hierarchy: Hierarchy, values: np.ndarray, height: int, width: int):
        self.path, self.partial, self.hierarchy = path, temporary_name(path), hierarchy
        self.tables = [values[list(level.nodes)] for level in hierarchy.levels]
        self.pixels = height * width
        self.counts = np.zeros(len(hierarchy.levels), dtype=np.int64)
        make_folder(path.parent)
        if max(values.max(), hierarchy.ignore) > 255:
            self.dtype, self.png = np.uint16, PngWriter(self.partial, height, width, "gray16")
            return
        colors = np.zeros((256, 3), dtype=np.uint8)
        colors[values] = hierarchy.colors
        self.dtype, self.png = np.uint8, PngWriter(self.partial, height, width, "palette", colors)

    def write(self, strip: Strip, image: np.ndarray) -> None:
        """Append a strip.

        Args:
            strip: The next rows of the prediction.
            image: The same rows of the image, h,W,3 uint8; not used.
        """
        undecided = undecided_id(self.hierarchy)
        rows = np.full(strip.ids[0].shape, self.hierarchy.ignore, dtype=self.dtype)
        for level in reversed(range(len(self.tables))):  # the finest that is decided on comes last
            decided = strip.ids[level] != undecided
            rows[decided] = self.tables[level][strip.ids[level][decided]]
            self.counts[level] += np.count_nonzero(decided)
        self.png.write(rows)

    def commit(self) -> dict[str, Any]:
        """Give the file its name.

        Returns:
            "pixels", "labeled" {level: pixels with a class at the level} and "files" [path].
        """
        self.png.finish()
        self.partial.replace(self.path)
        names = [level.name for level in self.hierarchy.levels]
        labeled = dict(zip(names, self.counts.tolist(), strict=True))
        return {"pixels": self.pixels, "labeled": labeled, "files": [str(self.path)]}

    def discard(self) -> None:
        """Close and remove what is unfinished."""
        self.png.abort()
        self.partial.unlink(missing_ok=True)


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
