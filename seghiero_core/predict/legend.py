"""classes.json, which says what the ids of masks mean, and the colors of the classes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from seghiero_core.atomic import write_new_files
from seghiero_core.decode_modes import undecided_id
from seghiero_core.errors import UsageError
from seghiero_core.hierarchy.tree import Hierarchy

LEGEND_NAME = "classes.json"


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
        the same order]}, "undecided": id or null, "nodata": the id of pixels without data}.
    """
    names, colors = {}, {}
    for number, level in enumerate(hierarchy.levels):
        names[level.name] = list(hierarchy.level_names(number))
        colors[level.name] = ["#{:02x}{:02x}{:02x}".format(*color) for color in hierarchy.colors[list(level.nodes)]]
    document = {"levels": names, "colors": colors, "undecided": undecided, "nodata": undecided_id(hierarchy)}
    text = json.dumps(document, indent=1, ensure_ascii=False)
    path = folder / LEGEND_NAME
    write_new_files({path: text}, force=True)
    return path


def level_colors(hierarchy: Hierarchy, empty: int | None) -> list[np.ndarray]:
    """Look up the colors of all ids.

    Args:
        hierarchy: The classes.
        empty: The id of pixels without a class; its color is black. None: there are none.

    Returns:
        N,3 uint8 per level, finest first.
    """
    return [_pad_colors(hierarchy.colors[list(level.nodes)], empty) for level in hierarchy.levels]


def blend(
    image: np.ndarray, level_ids: Sequence[np.ndarray], colors: Sequence[np.ndarray], empty: int | None
) -> np.ndarray:
    """Draw classes over an image.

    Args:
        image: H,W,3 uint8.
        level_ids: H,W ids per level, finest first.
        colors: What `level_colors` returned.
        empty: As for `level_colors`.

    Returns:
        H,W,3 uint8: half the image and half the color of the finest class that was decided on.
    """
    finest = colors[0][level_ids[0]]
    if empty is not None:
        for level in range(1, len(level_ids)):
            is_open = level_ids[level - 1] == empty
            finest[is_open] = colors[level][level_ids[level][is_open]]
    return (image >> 1) + (finest >> 1)


def _pad_colors(colors: np.ndarray, empty: int | None) -> np.ndarray:
    """The colors N,3 of a level, followed by black up to the id `empty`."""
    missing = 0 if empty is None else max(0, empty + 1 - len(colors))
    return np.concatenate([colors, np.zeros((missing, 3), colors.dtype)])
