"""GeoTIFF files of every layout, written with rasterio, and what they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from PIL import Image
from rasterio.transform import Affine

ROTATED = Affine(0.5, 0.1, 400_000, 0.1, -0.5, 5_000_000)
GEOREFERENCED = {"crs": "EPSG:32633", "transform": ROTATED}
LAYOUTS: dict[str, dict[str, Any]] = {
    "strips": {"blockysize": 8, "compress": "deflate"},
    "tiles": {"tiled": True, "blockxsize": 128, "blockysize": 64, "compress": "deflate", "predictor": 2},
    "planes": {"interleave": "band", "compress": "deflate"},
    "tiled planes": {"interleave": "band", "tiled": True, "blockxsize": 64, "blockysize": 64},
    "uncompressed": {},
    "uncompressed planes": {"interleave": "band"},
    "one strip": {"blockysize": 5000, "compress": "deflate"},
    "BigTIFF": {"BIGTIFF": "YES", "tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "lzma"},
    "big-endian": {"ENDIANNESS": "BIG", "compress": "deflate"},
}


def smooth(height: int, width: int, bands: int = 3, seed: int = 0, dtype: Any = np.uint8) -> np.ndarray:
    """H,W,C with structure that a network reacts to; of more than 8 bits, values up to 60 000."""
    rng = np.random.default_rng(seed)
    scale = 1 if dtype == np.uint8 else 235
    planes = []
    for _ in range(bands):
        small = Image.fromarray(rng.integers(0, 256, (-(-height // 40), -(-width // 40)), dtype=np.uint8))
        planes.append(np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(dtype) * dtype(scale))
    return np.stack(planes, axis=2)


def write_raster(path: Path, array: np.ndarray, **options: Any) -> Path:
    """Save H,W,C with the georeference GEOREFERENCED, unless the options have another one."""
    height, width, bands = array.shape
    if bands == 3 and array.dtype == np.uint8:
        options.setdefault("photometric", "rgb")
    profile = {**GEOREFERENCED, "driver": "GTiff", "height": height, "width": width, "count": bands, **options}
    with rasterio.open(path, "w", dtype=array.dtype, **profile) as file:
        file.write(array.transpose(2, 0, 1))
    return path


def read_raster(path: Path) -> np.ndarray:
    """H,W of the first band."""
    with rasterio.open(path) as file:
        return file.read(1)


def write_large_raster(path: Path, side: int, **options: Any) -> Path:
    """Save a raster of side x side px, 512 rows at a time. It is made of a few pictures, so that it stays small."""
    pictures = [smooth(512, 512, seed=seed) for seed in range(16)]
    across = -(-side // 512)
    profile = {**GEOREFERENCED, "driver": "GTiff", "height": side, "width": side, "count": 3, "dtype": "uint8"}
    with rasterio.open(path, "w", photometric="rgb", BIGTIFF="YES", **profile, **options) as file:
        for top in range(0, side, 512):
            order = np.random.default_rng(top).integers(0, 16, across)
            rows = np.concatenate([pictures[i] for i in order], axis=1)[: side - top, :side]
            file.write(rows.transpose(2, 0, 1), window=((top, top + len(rows)), (0, side)))
    return path
