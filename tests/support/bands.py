"""Data sets of images with several bands, of which one decides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from seghiero_core.data.statistics import Moments
from support import tiny  # noqa: F401, registers the backbone of `write_config`

SIDE = 64
CELL = 16  # px, of a square with one class


def save_bands(path: Path, image: np.ndarray) -> None:
    """H,W,C as .npy or .tif, by the name's ending."""
    if path.suffix == ".npy":
        np.save(path, image)
    else:
        planes = {"planarconfig": "contig"} if image.shape[2] > 1 else {}
        tifffile.imwrite(path, image if planes else image[..., 0], photometric="minisblack", **planes)


def draw_mask(rng: np.random.Generator, classes: int = 2) -> np.ndarray:
    """Squares of random classes."""
    cells = rng.integers(0, classes, (SIDE // CELL, SIDE // CELL), dtype=np.uint8)
    return cells.repeat(CELL, 0).repeat(CELL, 1)


def write_deciding_band(
    root: Path, *, images: int = 8, channels: int = 5, values: tuple[int, int] = (1000, 3000), extension: str = ".tif"
) -> Path:
    """A config for images of noise whose last band has one of two values, by the class of the pixel.

    All are uint16. mean and std are those of numpy.
    """
    rng, everything = np.random.default_rng(0), []
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for number in range(images):
            mask = draw_mask(rng)
            image = rng.integers(0, 4000, (SIDE, SIDE, channels)).astype(np.uint16)
            image[..., -1] = np.where(mask, values[1], values[0])
            save_bands(root / split / "images" / f"{number}{extension}", image)
            Image.fromarray(mask).save(root / split / "masks" / f"{number}.png")
            everything += [image] if split == "train" else []
    pixels = np.stack(everything).reshape(-1, channels).astype(np.float64)
    return write_config(root / "bands.yaml", channels, pixels.mean(axis=0).tolist(), pixels.std(axis=0).tolist())


def write_config(path: Path, channels: int, mean: list[float], std: list[float], extra: str = "") -> Path:
    path.write_text(
        f"""
dataset: {{train: train, val: val, channels: {channels}, mean: {mean}, std: {std}{extra}}}
classes: {{labels: [field, forest]}}
backbone: {{type: tiny}}
head: {{type: extremely_fast_segformer, proj_dim: 16}}
transform: {{size: [64, 64], scale: [1.0, 1.0], color_jitter: 0}}
training: {{device: cpu, epochs: 12, validate_every: 12, batch_size: 4, val_batch_size: 1, workers: 0, lr: 0.01}}
output: {{dir: runs}}
"""
    )
    return path


def numpy_moments(images: list[np.ndarray]) -> Moments:
    """The reference: all pixels at once."""
    pixels = np.concatenate([image.reshape(-1, image.shape[2]) for image in images]).astype(np.float64)
    pixels = pixels[~np.isnan(pixels).any(axis=1)]
    return Moments(len(pixels), pixels.mean(axis=0), ((pixels - pixels.mean(axis=0)) ** 2).sum(axis=0))
