"""Fixtures of the prediction tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def predict(run, tiny_run, tmp_path):
    """Runs `seghiero predict TINY_RUN ARGUMENTS --out out`; gives (exit code, stdout, stderr)."""

    def run_command(*arguments: object, model: Path = tiny_run) -> tuple[int, str, str]:
        return run("predict", model, "--out", tmp_path / "out", "--device=cpu", *arguments)

    return run_command


@pytest.fixture
def images(tmp_path) -> Path:
    """A folder with five images, one of them in a sub-folder and of another size."""
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    rng = np.random.default_rng(1)
    for i in range(5):
        small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        where = folder / ("sub/4.png" if i == 4 else f"{i}.png")
        small.resize((70, 50) if i == 4 else (83, 61), Image.Resampling.BICUBIC).save(where)
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes(b"no image either")
    return folder


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """H,W,3 uint8 with structure at every scale."""
    rng = np.random.default_rng(3)
    small = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    large = np.asarray(small.resize((523, 391), Image.Resampling.BICUBIC), dtype=np.int16)
    return np.clip(large + rng.integers(-20, 20, large.shape), 0, 255).astype(np.uint8)
