"""Pairing images with masks: two folders, matched by relative path and stem."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

from seghiero_core.data.bands import ARRAY_EXTENSION
from seghiero_core.data.encoded import Pair, encoded_reader
from seghiero_core.data.faults import name_files
from seghiero_core.data.hints import look_swapped
from seghiero_core.errors import DataError, shorten
from seghiero_core.readers import Bands

IMAGE_EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
"""Images of a data set. GIF files beside them are masks or previews."""
PREDICTED_EXTENSIONS = IMAGE_EXTENSIONS | {".jfif", ".jp2", ".gif", ".avif"}
"""Images to predict. Of an animation, the first frame is read."""
MASK_EXTENSIONS = frozenset({".png", ".bmp", ".tif", ".tiff", ".gif", ".pgm"})
"""Lossless formats only: JPEG changes label values."""


def find_pairs(
    key: str,
    images: Path,
    masks: Path,
    image_suffix: str = "",
    mask_suffix: str = "",
    listed: Path | None = None,
    *,
    bands: Bands | None = None,
) -> list[Pair]:
    """Pair every image below one folder with its mask below another.

    A pair has the same sub-folder and, without `image_suffix` and `mask_suffix`, the same stem. Files without the
    suffix, hidden files and masks without an image are skipped. Links are followed.

    Args:
        key: Where the split is in the config, such as "dataset.train", for messages.
        images: The folder of images.
        masks: The folder of masks.
        image_suffix: What image names have before the extension and mask names don't, such as "_leftImg8bit".
        mask_suffix: The same for masks.
        listed: A text file with a line for each image to take: its path relative to `images`, with or without the
            extension and suffix. Default: all.
        bands: How the images are read; with it, .npy files are images, too. Default: as 8-bit RGB.

    Returns:
        The pairs, sorted by relative path; the names are relative to `images`.

    Raises:
        DataError: When a folder is missing or has no such file, an image has no mask, two files have the same stem, or
            the list doesn't name images.
    """
    extensions = IMAGE_EXTENSIONS | {ARRAY_EXTENSION} if bands else IMAGE_EXTENSIONS
    image_files = _by_stem(images, extensions, image_suffix, f"{key}.images", "image")
    if listed is not None:
        image_files = _select(f"{key}.list", listed, images, image_files)
    try:
        mask_files = _by_stem(masks, MASK_EXTENSIONS, mask_suffix, f"{key}.masks", "mask")
    except DataError:
        _check_not_swapped(images, masks, key)
        _check_not_jpeg(images, masks, key, image_files, mask_suffix)
        raise
    paired = sorted(set(image_files) & set(mask_files))
    pairs = [Pair(images / image_files[stem], masks / mask_files[stem], image_files[stem]) for stem in paired]
    try:
        _check_all_have_masks(key, images, masks, image_files, set(paired), mask_suffix)
    except DataError as error:
        error.rest = encoded_reader(pairs, bands) if pairs else None
        raise
    return pairs


def files_below(folder: Path) -> Iterator[Path]:
    """Walk a folder, following links.

    Every real folder is entered once, so links can't form a loop.

    Args:
        folder: Where to start.

    Yields:
        Every file that is not hidden, nor in a hidden folder; sorted within each folder.
    """
    for here, names in _folders_below(folder):
        yield from (Path(here, name) for name in names)


def _folders_below(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Every folder that `files_below` enters, and the names of its files; they start with `folder`."""
    entered = set()
    for here, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield here, sorted(name for name in names if not name.startswith("."))


def _check_all_have_masks(
    key: str, images: Path, masks: Path, image_files: dict[str, str], paired: set[str], mask_suffix: str
) -> None:
    """Raise DataError where images have no mask."""
    missing = sorted(set(image_files) - paired)
    if not missing:
        return
    _check_not_jpeg(images, masks, key, missing, mask_suffix)
    shown, section = shorten([images / image_files[stem] for stem in missing]), key.rpartition(".")[0]
    raise DataError(
        f"{len(missing)} of {len(image_files)} images have no mask: {shown}. A mask for the first is expected at "
        f"{masks / missing[0]}{mask_suffix}.png (or in another lossless format).",
        fix="Add the masks, remove the images, or, if the names end differently, set "
        f"{section}.image_suffix and {section}.mask_suffix.",
        kind="no_mask",
    )


def _select(key: str, listed: Path, folder: Path, found: dict[str, str]) -> dict[str, str]:
    """The images that a list names, by relative path without extension and suffix."""
    try:
        names = [line.strip() for line in listed.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise DataError(f"{key}: can't read {listed}: {reason}.", fix="Correct the path.") from None
    stems = {name: stem for stem, name in found.items()}
    stems |= {name.rpartition(".")[0]: stem for stem, name in found.items()}
    stems |= {stem: stem for stem in found}
    unknown = [name for name in names if name not in stems]
    if unknown or not names:
        problem = f"{len(unknown)} of {len(names)} lines name no image in {folder}: {shorten(unknown)}"
        raise DataError(
            f"{key}: {listed}: {problem if unknown else 'the file has no names'}.",
            fix="Write a line for each image: its path relative to the folder of images.",
        )
    selected = {stems[name]: found[stems[name]] for name in names}
    if len(selected) < len(names):
        repeated = [name for name, count in Counter(stems[name] for name in names).items() if count > 1]
        raise DataError(f"{key}: {listed} names images twice: {shorten(repeated)}.", fix="Remove the repeated lines.")
    return selected


def _check_not_swapped(image_folder: Path, mask_folder: Path, key: str) -> None:
    """Raise DataError where the folder of images holds masks, and that of masks pictures."""
    images, masks = (
        [path for path in files_below(folder) if path.suffix.lower() in IMAGE_EXTENSIONS]
        for folder in (image_folder, mask_folder)
    )
    if look_swapped(images, masks):
        raise DataError(
            f"{key}: the files in {image_folder} look like masks, those in {mask_folder} like pictures.",
            fix="Swap `images` and `masks`.",
            kind="swapped",
        )


def _check_not_jpeg(images: Path, masks: Path, key: str, missing: Collection[str], mask_suffix: str) -> None:
    """Raise DataError where the masks that are missing are JPEG files."""
    wanted = {f"{stem}{mask_suffix}" for stem in missing}
    jpegs = [
        path
        for path in files_below(masks)
        if path.suffix.lower() in (".jpg", ".jpeg")
        and path.relative_to(masks).with_suffix("").as_posix() in wanted
        and not path.is_relative_to(images)  # the folder of images may be the same, or inside
    ]
    if jpegs:
        raise DataError(
            f"{key}.masks: {name_files(jpegs)}: JPEG alters label values, so masks can't be JPEG files.",
            fix="Export them as PNG.",
            kind="jpeg_mask",
        )


def _by_stem(folder: Path, extensions: frozenset[str], suffix: str, key: str, kind: str) -> dict[str, str]:
    """The relative paths of the files of `folder`, by relative path without extension and suffix, all with `/`."""
    if not folder.is_dir():
        problem = "is a file, not a folder" if folder.exists() else "does not exist"
        section, split, _ = key.rsplit(".", 2)
        start = "the file" if section == "dataset" else "dataset.root"
        raise DataError(
            f"{key}: {folder} {problem}.",
            fix=f"Write `{split}: {{images: FOLDER, masks: FOLDER}}`, or `{split}: FOLDER` for a folder that holds "
            f"images/ and masks/. In the YAML file, these paths are relative to {section}.root, which is relative to "
            f"{start}.",
            kind="no_folder",
        )
    found: dict[str, str] = {}
    skipped = 0
    for here, names in _folders_below(folder):  # as text: paths of 100,000 files would take seconds
        below = "" if here == str(folder) else Path(here).relative_to(folder).as_posix() + "/"
        for name in names:
            stem, dot, extension = name.rpartition(".")
            if f"{dot}{extension}".lower() not in extensions or not stem.endswith(suffix):
                skipped += 1
                continue
            sample, file = below + stem.removesuffix(suffix), below + name
            if sample in found:
                both = f"{folder / found[sample]} and {folder / file}"
                raise DataError(f"{key}: {both} are both the {kind} of one sample.", fix="Remove one.")
            found[sample] = file
    if not found:
        named = f" with '{suffix}' before the extension" if suffix else ""
        others = f" (files skipped: {skipped})" if skipped else ""
        raise DataError(
            f"{key}: {folder} has no {kind}{named}{others}. Expected files ending in {', '.join(sorted(extensions))}.",
            fix="Correct the path, or add the files.",
            kind="no_files",
        )
    return found
