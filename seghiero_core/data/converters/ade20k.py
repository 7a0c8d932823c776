"""ADE20K as published for the scene parsing benchmark (ADEChallengeData2016): 150 classes, 0 is ignored."""

from __future__ import annotations

from pathlib import Path

from seghiero_core.data.converters.conversion import Conversion, Options
from seghiero_core.data.converters.image_files import ImageFolder, folders_named, items_of_masks
from seghiero_core.errors import DataError, UsageError
from seghiero_core.hierarchy.presets import read_preset

_IGNORE = 255
_PRESET = "ade20k"


def read_ade20k(source: Path, options: Options) -> Conversion:
    """Find the masks of annotations, and the images of images.

    Args:
        source: The folder ADEChallengeData2016, or one above it.
        options: What the user chose.

    Returns:
        The images.

    Raises:
        UsageError: When there is no folder annotations.
        DataError: When objectInfo150.txt lists other classes.
    """
    folders = folders_named(source, "annotations", without=options.out)
    if len(folders) != 1:
        found = f"the folders {folders[0]} and {folders[1]}" if folders else "no folder annotations"
        raise UsageError(f"{source} has {found}; give the folder ADEChallengeData2016.")
    labels = read_preset(_PRESET)["labels"]
    root = folders[0].parent
    _check_names(root / "objectInfo150.txt", labels)
    images = ImageFolder(options.images or root / "images", option=options.images is not None)
    table = {0: _IGNORE} | {value: value for value in labels}
    items, faults = items_of_masks(folders[0], root, images, table)
    return Conversion(items, {"preset": _PRESET, "ignore": _IGNORE}, faults)


def _check_names(path: Path, labels: dict[int, str]) -> None:
    """Refuse another list of classes. Lines are an index, statistics and comma-separated names, between tabs."""
    if not path.is_file():
        return
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        cells = [cell.strip() for cell in line.split("\t")]
        if not cells[0].isdigit():
            continue
        names = [name.strip() for name in cells[-1].split(",")]
        if labels.get(int(cells[0])) not in names:
            expected = labels.get(int(cells[0]), "nothing")
            raise DataError(
                f"{path}, line {number}: expected '{expected}' as class {cells[0]}, found '{cells[-1]}'; only the 150 "
                "classes of the scene parsing benchmark can be converted."
            )
