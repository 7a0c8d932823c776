"""Pairing images with masks: two folders, matched by relative path and stem."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from seghiero_core.config.schema import DatasetConfig
from seghiero_core.data.faults import name_files
from seghiero_core.data.hints import look_swapped
from seghiero_core.errors import DataError, UsageError, shorten

IMAGE_EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
"""Images of a data set. GIF files beside them are masks or previews."""
PREDICTED_EXTENSIONS = IMAGE_EXTENSIONS | {".jfif", ".jp2", ".gif", ".avif"}
"""Images to predict. Of an animation, the first frame is read."""
MASK_EXTENSIONS = frozenset({".png", ".bmp", ".tif", ".tiff", ".gif", ".pgm"})
"""Lossless formats only: JPEG changes label values."""

SPLITS = ("train", "val", "test")
"""The splits that a config's `dataset` section can have."""

_Item = TypeVar("_Item")


class Split(Protocol):
    """Two folders, as in a split of a config's `dataset` section."""

    images: Path
    masks: Path


@dataclass(frozen=True)
class Sample:
    """An image file and its mask file."""

    image: Path
    mask: Path


def find_samples(split: Split, *, name: str = "train", image_suffix: str = "", mask_suffix: str = "") -> list[Sample]:
    """Pair every image below `split.images` with its mask below `split.masks`.

    A pair has the same sub-folder and, without `image_suffix` and `mask_suffix`, the same stem. Files without the
    suffix, hidden files and masks without an image are skipped. Links are followed.

    Args:
        split: The folders of images and masks.
        name: The split's key under `dataset`, for messages.
        image_suffix: What image names have before the extension and mask names don't, such as "_leftImg8bit".
        mask_suffix: The same for masks.

    Returns:
        The pairs, sorted by relative path.

    Raises:
        DataError: When a folder is missing or has no such file, an image has no mask, or two files have the same stem.
    """
    images = _by_stem(Path(split.images), IMAGE_EXTENSIONS, image_suffix, f"dataset.{name}.images", "image")
    try:
        masks = _by_stem(Path(split.masks), MASK_EXTENSIONS, mask_suffix, f"dataset.{name}.masks", "mask")
    except DataError:
        _check_not_swapped(split, name)
        _check_not_jpeg(split, name, images, mask_suffix)
        raise
    missing = sorted(set(images) - set(masks))
    if missing:
        _check_not_jpeg(split, name, missing, mask_suffix)
        shown = shorten([images[stem] for stem in missing])
        raise DataError(
            f"{len(missing)} of {len(images)} images have no mask: {shown}. A mask for the first is expected at "
            f"{Path(split.masks) / missing[0]}{mask_suffix}.png (or in another lossless format). Add the masks, remove "
            "the images, or, if the names end differently, set dataset.image_suffix and dataset.mask_suffix."
        )
    return [Sample(images[stem], masks[stem]) for stem in sorted(images)]


def split_samples(dataset: DatasetConfig, name: str) -> list[Sample]:
    """Find the samples of one split of a config.

    Args:
        dataset: The config's `dataset` section.
        name: "train", "val" or "test".

    Returns:
        The pairs, as `find_samples` returns them.

    Raises:
        UsageError: When the config has no such split.
        DataError: When the split's files are missing or don't pair up.
    """
    configured = [split for split in SPLITS if getattr(dataset, split) is not None]
    if name not in configured:
        raise UsageError(f"--split {name}: the config has no such split; known: {', '.join(configured)}.")
    return find_samples(
        getattr(dataset, name), name=name, image_suffix=dataset.image_suffix, mask_suffix=dataset.mask_suffix
    )


def evenly_spaced(items: Sequence[_Item], count: int) -> list[_Item]:
    """Pick evenly spaced items, starting with the first.

    Args:
        items: The items to choose from.
        count: How many to pick, at most.

    Returns:
        `count` of the items in order, or all of them if there are fewer.
    """
    if len(items) <= count:
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


def files_below(folder: Path) -> Iterator[Path]:
    """Walk a folder, following links.

    Every real folder is entered once, so links can't form a loop.

    Args:
        folder: Where to start.

    Yields:
        Every file that is not hidden, nor in a hidden folder; sorted within each folder.
    """
    entered = set()
    for here, folders, names in os.walk(folder, followlinks=True):
        real = Path(here).resolve()
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(here, name) for name in sorted(names) if not name.startswith("."))


def _check_not_swapped(split: Split, name: str) -> None:
    """Raise DataError where the folder of images holds masks, and that of masks pictures."""
    images, masks = (
        [path for path in files_below(folder) if path.suffix.lower() in IMAGE_EXTENSIONS]
        for folder in (Path(split.images), Path(split.masks))
    )
    if look_swapped(images, masks):
        raise DataError(
            f"dataset.{name}: the files in {split.images} look like masks, those in {split.masks} like pictures. Swap "
            "`images` and `masks`."
        )


def _check_not_jpeg(split: Split, name: str, missing: Collection[str], mask_suffix: str) -> None:
    """Raise DataError where the masks that are missing are JPEG files."""
    wanted = {f"{stem}{mask_suffix}" for stem in missing}
    jpegs = [
        path
        for path in files_below(Path(split.masks))
        if path.suffix.lower() in (".jpg", ".jpeg")
        and path.relative_to(split.masks).with_suffix("").as_posix() in wanted
        and not path.is_relative_to(split.images)  # the folder of images may be the same, or inside
    ]
    if jpegs:
        raise DataError(
            f"dataset.{name}.masks: {name_files(jpegs)}: JPEG alters label values, so masks can't be JPEG files. "
            "Export them as PNG."
        )


def _by_stem(folder: Path, extensions: frozenset[str], suffix: str, key: str, kind: str) -> dict[str, Path]:
    """Files of `folder` by relative path without extension and suffix, with `/` between folders."""
    if not folder.is_dir():
        problem = "is a file, not a folder" if folder.exists() else "does not exist"
        split = key.split(".")[1]
        raise DataError(
            f"{key}: {folder} {problem}. Write `{split}: {{images: FOLDER, masks: FOLDER}}`, or `{split}: FOLDER` for "
            "a folder that holds images/ and masks/. In the YAML file, these paths are relative to dataset.root, "
            "which is relative to the file."
        )
    found: dict[str, Path] = {}
    skipped = 0
    for path in files_below(folder):
        if path.suffix.lower() not in extensions or not path.stem.endswith(suffix):
            skipped += 1
            continue
        stem = path.relative_to(folder).with_name(path.stem.removesuffix(suffix)).as_posix()
        if stem in found:
            raise DataError(f"{key}: {found[stem]} and {path} are both the {kind} of one sample; remove one of them.")
        found[stem] = path
    if not found:
        named = f" with '{suffix}' before the extension" if suffix else ""
        others = f" (files skipped: {skipped})" if skipped else ""
        raise DataError(
            f"{key}: {folder} has no {kind}{named}{others}. Expected files ending in "
            f"{', '.join(sorted(extensions))}; correct the path or add the files."
        )
    return found
