"""Which image belongs to which mask: two folders, paired by relative path and stem."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from seghiero_core.config.schema import DatasetConfig
from seghiero_core.errors import DataError, UsageError, shorten

IMAGE_EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
MASK_EXTENSIONS = frozenset({".png", ".bmp", ".tif", ".tiff", ".gif", ".pgm"})
"""Lossless ones only: a JPEG blurs label values."""


SPLITS = ("train", "val", "test")

Item = TypeVar("Item")


class Split(Protocol):
    """What `find_samples` needs of a split: two folders."""

    images: Path
    masks: Path


@dataclass(frozen=True)
class Sample:
    """An image file and its mask file."""

    image: Path
    mask: Path


def find_samples(split: Split, *, name: str = "train", image_suffix: str = "", mask_suffix: str = "") -> list[Sample]:
    """Every image below `split.images` with its mask below `split.masks`, sorted by relative path.

    A pair has the same sub-folder and the same stem once `image_suffix` and `mask_suffix` are taken off; files
    without the suffix are passed over, as are hidden files and masks without an image. Links are followed.

    Args:
        name: the split's key under `dataset`, for messages.

    Raises DataError where a folder is missing or holds no such file, an image has no mask, or a stem stands for
    two files.
    """
    images = _by_stem(Path(split.images), IMAGE_EXTENSIONS, image_suffix, f"dataset.{name}.images", "image")
    masks = _by_stem(Path(split.masks), MASK_EXTENSIONS, mask_suffix, f"dataset.{name}.masks", "mask")
    missing = sorted(set(images) - set(masks))
    if missing:
        shown = shorten([images[stem] for stem in missing])
        raise DataError(
            f"{len(missing)} of {len(images)} images have no mask: {shown}. A mask for the first is expected at "
            f"{Path(split.masks) / missing[0]}{mask_suffix}.png (or another lossless format). Add the masks, remove "
            "the images, or set dataset.image_suffix and dataset.mask_suffix if the names differ by an ending."
        )
    return [Sample(images[stem], masks[stem]) for stem in sorted(images)]


def split_samples(dataset: DatasetConfig, name: str) -> list[Sample]:
    """`find_samples` of a split of a config's `dataset` section. Raises UsageError too, where it has no such split."""
    have = [split for split in SPLITS if getattr(dataset, split) is not None]
    if name not in have:
        raise UsageError(f"--split {name}: the config has no such split; known: {', '.join(have)}.")
    return find_samples(
        getattr(dataset, name), name=name, image_suffix=dataset.image_suffix, mask_suffix=dataset.mask_suffix
    )


def evenly_spaced(items: Sequence[Item], count: int) -> list[Item]:
    """Return at most `count` of the items, evenly spaced from the first on."""
    return list(items) if len(items) <= count else [items[i * len(items) // count] for i in range(count)]


def _by_stem(folder: Path, extensions: frozenset[str], suffix: str, key: str, kind: str) -> dict[str, Path]:
    """Files of `folder` by relative path without extension and suffix, with `/` between folders."""
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise DataError(f"{key}: {folder} {what}. Correct the path (it is relative to the YAML file).")
    found: dict[str, Path] = {}
    passed_over = 0
    for path in files_below(folder):
        if path.suffix.lower() not in extensions or not path.stem.endswith(suffix):
            passed_over += 1
            continue
        stem = path.relative_to(folder).with_name(path.stem.removesuffix(suffix)).as_posix()
        if stem in found:
            raise DataError(f"{key}: {found[stem]} and {path} are the {kind} of one sample; remove one of them.")
        found[stem] = path
    if not found:
        named = f" with '{suffix}' before the extension" if suffix else ""
        others = f" ({passed_over} other files are there)" if passed_over else ""
        raise DataError(
            f"{key}: {folder} holds no {kind}{named}{others}. Expected files ending in "
            f"{', '.join(sorted(extensions))}; correct the path or add the files."
        )
    return found


def files_below(folder: Path):
    """Every file below `folder` that is not hidden; each real folder is entered once, so that links can't loop."""
    entered = set()
    for here, folders, names in os.walk(folder, followlinks=True):
        real = Path(here).resolve()
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(here, name) for name in sorted(names) if not name.startswith("."))
