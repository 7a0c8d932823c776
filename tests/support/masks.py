"""Reading and comparing the files that `seghiero predict` writes for the starter's classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

LEVELS = ("leaf", "level1", "level2")


def read_png(path: Path) -> np.ndarray:
    """The stored values: for masks the ids, not the palette's colors."""
    with Image.open(path) as image:
        return np.array(image)


def written_files(folder: Path) -> list[str]:
    """All files below a folder but the legend, hidden ones too."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if name != "classes.json")


def assert_masks_equal(stem: Path, expected) -> None:
    """The masks at STEM.LEVEL.png are those of a `Prediction`."""
    for level in LEVELS:
        assert np.array_equal(read_png(stem.with_name(f"{stem.name}.{level}.png")), expected.ids[level])
