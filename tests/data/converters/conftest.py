"""A data set to write in every format: small masks, and images that differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def masks() -> dict[str, np.ndarray]:
    """Six masks of 40x56 px with thin poles, holes, regions that touch at corners, and pixels to ignore."""
    rng = np.random.default_rng(0)
    found = {}
    for i in range(6):
        mask = np.kron(rng.integers(0, 7, (5, 7)), np.ones((8, 8), int)).astype(np.uint8)
        mask[rng.random((40, 56)) < 0.03] = 5
        mask[:, rng.integers(0, 56)] = 2
        mask[10:20, 10:25] = 1
        mask[12:17, 13:20] = 3
        mask[30:33, 5:12] = 255
        found[f"{i:03}"] = mask
    return found


@pytest.fixture
def write_images(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes an image for each mask, by name without extension, and returns their folder."""

    def write(masks: Mapping[str, np.ndarray], folder: str = "photos", extension: str = ".png") -> Path:
        rng = np.random.default_rng(1)
        for name, mask in masks.items():
            path = tmp_path / folder / f"{name}{extension}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (*mask.shape, 3), dtype=np.uint8)).save(path)
        return tmp_path / folder

    return write
