"""Pairing images with masks: two folders, matched by relative path and stem."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
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

_Item = TypeVar("_Item")


class Split(Protocol):
    """Two folders, as in a split of a config's `dataset` section."""

    images: Path
    masks: Path


@dataclass(frozen=True)
class Sample:
    """An image file and its mask file.

    Attributes:
        image: The image file.
        mask: The mask file.
        source: The position in `dataset.sources` of the data set that it comes from; None without sources.
    """

    image: Path
    mask: Path
    source: int | None = None


def find_samples(
    split: Split, *, key: str = "dataset.train", image_suffix: str = "", mask_suffix: str = ""
) -> list[Sample]:
    """Pair every image below `split.images` with its mask below `split.masks`.

    A pair has the same sub-folder and, without `image_suffix` and `mask_suffix`, the same stem. Files without the
    suffix, hidden files and masks without an image are skipped. Links are followed.

    Args:
        split: The folders of images and masks.
        key: Where the split is in the config, for messages.
        image_suffix: What image names have before the extension and mask names don't, such as "_leftImg8bit".
        mask_suffix: The same for masks.

    Returns:
        The pairs, sorted by relative path.

    Raises:
        DataError: When a folder is missing or has no such file, an image has no mask, or two files have the same stem.
    """
    images = _by_stem(Path(split.images), IMAGE_EXTENSIONS, image_suffix, f"{key}.images", "image")
    try:
        masks = _by_stem(Path(split.masks), MASK_EXTENSIONS, mask_suffix, f"{key}.masks", "mask")
    except DataError:
        _check_not_swapped(split, key)
        _check_not_jpeg(split, key, images, mask_suffix)
        raise
    missing = sorted(set(images) - set(masks))
    if missing:
        _check_not_jpeg(split, key, missing, mask_suffix)
        shown, section = shorten([images[stem] for stem in missing]), key.rpartition(".")[0]
        raise DataError(
            f"{len(missing)} of {len(images)} images have no mask: {shown}. A mask for the first is expected at "
            f"{Path(split.masks) / missing[0]}{mask_suffix}.png (or in another lossless format). Add the masks, remove "
            f"the images, or, if the names end differently, set {section}.image_suffix and {section}.mask_suffix."
        )
    return [Sample(images[stem], masks[stem]) for stem in sorted(images)]


def split_samples(dataset: DatasetConfig, name: str) -> list[Sample]:
    """Find the samples of one split of a config, in all its sources.

    Args:
        dataset: The config's `dataset` section.
        name: "train", "val" or "test".

    Returns:
        The pairs of each source in turn, as `find_samples` returns them.

    Raises:
        UsageError: When the config has no such split.
        DataError: When the split's files are missing or don't pair up.
    """
    if name not in dataset.splits:
        raise UsageError(f"--split {name}: the config has no such split; known: {', '.join(dataset.splits)}.")
    samples: list[Sample] = []
    faults: list[str] = []
    for position, part in enumerate(dataset.parts):
        if split := getattr(part, name):
            suffixes = {"image_suffix": part.image_suffix, "mask_suffix": part.mask_suffix}
            key = f"dataset.sources.{position}.{name}" if dataset.sources else f"dataset.{name}"
            try:
                found = find_samples(split, key=key, **suffixes)
            except DataError as error:
                faults.append(str(error))
            else:
                samples += [replace(sample, source=position) for sample in found] if dataset.sources else found
    if faults:
        raise DataError("\n".join(faults))
    return samples


def caption(sample: Sample, name: str, dataset: DatasetConfig) -> str:
    """Name a sample in a picture.

    Args:
        sample: The sample.
        name: The name of its image.
        dataset: The config's `dataset` section.

    Returns:
        The name, after that of its source where there are any.
    """
    return f"{dataset.sources[sample.source].name}: {name}" if dataset.sources else name


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


def _check_not_swapped(split: Split, key: str) -> None:
    """Raise DataError where the folder of images holds masks, and that of masks pictures."""
    images, masks = (
        [path for path in files_below(folder) if path.suffix.lower() in IMAGE_EXTENSIONS]
        for folder in (Path(split.images), Path(split.masks))
    )
    if look_swapped(images, masks):
        raise DataError(
            f"{key}: the files in {split.images} look like masks, those in {split.masks} like pictures. Swap "
            "`images` and `masks`."
        )


def _check_not_jpeg(split: Split, key: str, missing: Collection[str], mask_suffix: str) -> None:
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
            f"{key}.masks: {name_files(jpegs)}: JPEG alters label values, so masks can't be JPEG files. "
            "Export them as PNG."
        )


def _by_stem(folder: Path, extensions: frozenset[str], suffix: str, key: str, kind: str) -> dict[str, Path]:
    """Files of `folder` by relative path without extension and suffix, with `/` between folders."""
    if not folder.is_dir():
        problem = "is a file, not a folder" if folder.exists() else "does not exist"
        section, split, _ = key.rsplit(".", 2)
        start = "the file" if section == "dataset" else "dataset.root"
        raise DataError(
            f"{key}: {folder} {problem}. Write `{split}: {{images: FOLDER, masks: FOLDER}}`, or `{split}: FOLDER` for "
            f"a folder that holds images/ and masks/. In the YAML file, these paths are relative to {section}.root, "
            f"which is relative to {start}."
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
