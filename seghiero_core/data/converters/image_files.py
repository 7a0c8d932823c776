"""Finding the images that annotations name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath

from seghiero_core.data.converters.conversion import Item, remapping, split_of
from seghiero_core.data.faults import FileError
from seghiero_core.data.pairing import IMAGE_EXTENSIONS, MASK_EXTENSIONS, files_below
from seghiero_core.errors import DataError, UsageError


class ImageFolder:
    """The images below a folder, by name.

    Args:
        folder: The folder to search, with all folders below it.
        without: Folders to leave out, such as the output.
        option: Whether the user named the folder with --images.

    Raises:
        UsageError: When there is no such folder.
    """

    def __init__(self, folder: Path, without: Iterable[Path] = (), *, option: bool = False) -> None:
        if not folder.is_dir():
            raise UsageError(f"{'--images ' if option else ''}{folder} is not a folder; correct the path.")
        self.folder = folder
        here = folder.resolve()
        hidden = [path.resolve() for path in without if path.resolve().is_relative_to(here)]
        self._by_name: dict[str, list[Path]] = {}
        self._by_stem: dict[str, list[Path]] = {}
        for path in files_below(folder):
            if path.suffix.lower() != ".json" and not (hidden and any(map(path.resolve().is_relative_to, hidden))):
                self._by_name.setdefault(path.name, []).append(path)
                if path.suffix.lower() in IMAGE_EXTENSIONS:
                    self._by_stem.setdefault(path.stem, []).append(path)

    def find(self, file_name: str, where: object, near: Path | None = None, split: str | None = None) -> Path:
        """Find the image with a file name.

        Args:
            file_name: The name, with or without folders, also those of Windows.
            where: What names the image, for messages.
            near: A folder whose images are preferred among several of the name.
            split: A split whose images are then preferred.

        Returns:
            The file.

        Raises:
            DataError: When there is no such image, or more than one, or training can't read its format.
        """
        wanted = PurePosixPath(file_name.replace("\\", "/"))
        path = self._only(self._by_name.get(wanted.name, []), wanted, where, lambda each: each, near, split)
        if path.suffix.lower() not in IMAGE_EXTENSIONS:
            raise DataError(f"{where}: the image {path} is not in a format of training images; convert it to PNG.")
        return path

    def find_stem(self, stem: str, where: object, near: Path | None = None) -> Path:
        """Find the image with a name, whatever its extension.

        Args:
            stem: The name without extension, with or without folders.
            where: What names the image, for messages.
            near: A folder whose images are preferred among several of the name.

        Returns:
            The file.

        Raises:
            DataError: When there is no such image, or more than one.
        """
        wanted = PurePosixPath(stem)
        return self._only(self._by_stem.get(wanted.name, []), wanted, where, lambda each: each.with_suffix(""), near)

    def _only(
        self,
        found: list[Path],
        wanted: PurePosixPath,
        where: object,
        form: Callable[[Path], Path],
        near: Path | None = None,
        split: str | None = None,
    ) -> Path:
        parts = [part for part in wanted.parts if part not in ("..", "/")]
        for is_meant in (
            lambda each: form(each).parts[-len(parts) :] == tuple(parts),
            lambda each: near is not None and each.is_relative_to(near),
            lambda each: split is not None and split_of(each.relative_to(self.folder)) == split,
        ):
            found = [path for path in found if is_meant(path)] or found
        if not found:
            others = self._by_stem.get(wanted.name, []) or self._by_stem.get(wanted.stem, [])
            hint = f" Did you mean '{others[0]}'?" if others else ""
            advice = "Add it, or name the folder of the images with --images."
            raise FileError(
                f"{where}: found no image '{wanted}' below {self.folder}.{hint} {advice}",
                self.folder / wanted.name,
                many="{count} images were not found: {files}. Add them, or name their folder with --images.",
            )
        if len(found) > 1:
            advice = "Rename or move one of them, or name the folder of the images with --images."
            raise FileError(
                f"{where}: '{wanted}' may be {found[0]} or {found[1]}. {advice}",
                self.folder / wanted,
                many=f"{{count}} images have a file name that others have, too: {{files}}. {advice}",
                detail=f"{found[0]} or {found[1]}",
            )
        return found[0]


def masks_below(folder: Path, without: Path | None = None) -> list[Path]:
    """List the masks below a folder.

    Args:
        folder: Where to search.
        without: A folder to leave out, such as the output.

    Returns:
        Files in lossless formats.

    Raises:
        UsageError: When there is no such folder, or it has no mask.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; correct the path.")
    masks = [path for path in files_below(folder) if path.suffix.lower() in MASK_EXTENSIONS]
    if without is not None and without.resolve().is_relative_to(folder.resolve()):
        masks = [path for path in masks if not path.resolve().is_relative_to(without.resolve())]
    if not masks:
        raise UsageError(f"{folder} has no mask ({', '.join(sorted(MASK_EXTENSIONS))}).")
    return masks


def folders_named(source: Path, *names: str, without: Path | None = None) -> list[Path]:
    """Find folders by name, in a folder and below it. Nothing is searched below a folder that was found.

    Args:
        source: Where to search.
        names: The names.
        without: A folder to leave out, such as the output.

    Returns:
        The folders, sorted.

    Raises:
        UsageError: When there is no such folder as `source`.
    """
    if not source.is_dir():
        raise UsageError(f"{source} is not a folder; correct the path.")
    found = [source] if source.name in names else []
    for here, folders, _ in os.walk(source):
        found += [Path(here, name) for name in folders if name in names]
        folders[:] = sorted(
            name
            for name in folders
            if name not in names and not name.startswith(".") and (without is None or Path(here, name) != without)
        )
    return sorted(found)


def items_of_masks(
    folder: Path, root: Path, images: ImageFolder, table: Mapping[int, int]
) -> tuple[list[Item], list[DataError]]:
    """Make the items of masks whose images have the same names.

    Args:
        folder: Where the masks are.
        root: The folder whose sub-folders name the splits; masks in others are for training.
        images: Where the images are.
        table: The new value of each mask value.

    Returns:
        The items, and the faults of masks without an image.
    """
    items, faults = [], []
    for mask in masks_below(folder):
        try:
            image = images.find_stem(mask.stem, mask)
        except DataError as error:
            faults.append(error)
        else:
            split = split_of(mask.relative_to(root).parent) or "train"
            items.append(Item(mask.stem, split, image, remapping(mask, table), mask))
    return items, faults
