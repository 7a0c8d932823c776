"""Cityscapes: the raw label ids of gtFine become train ids."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from seghiero_core.data.converters.conversion import Conversion, Item, Options, remapping, split_of
from seghiero_core.data.converters.image_files import ImageFolder, masks_below
from seghiero_core.errors import DataError, UsageError

_IGNORE = 255
_TRAIN_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""The label id of each train id, as in helpers/labels.py of cityscapesScripts."""
_OF_LABEL_IDS = dict.fromkeys((*range(34), _IGNORE), _IGNORE) | {label: train for train, label in enumerate(_TRAIN_IDS)}
_OF_TRAIN_IDS = {value: value for value in (*range(len(_TRAIN_IDS)), _IGNORE)}
_IMAGE_ENDING = "_leftImg8bit"


def read_cityscapes(source: Path, options: Options) -> Conversion:
    """Find the masks of gtFine, and the images of leftImg8bit.

    Args:
        source: The folder that holds gtFine and leftImg8bit.
        options: What the user chose.

    Returns:
        The images for training and validation; the masks of test images are not published.

    Raises:
        UsageError: When there are no masks of gtFine.
    """
    found = masks_below(source, options.out)
    tables = {"_gtFine_labelIds": _OF_LABEL_IDS, "_gtFine_labelTrainIds": _OF_TRAIN_IDS}
    ending = next((each for each in tables if any(path.stem.endswith(each) for path in found)), None)
    if ending is None:
        raise UsageError(
            f"{source} has no masks NAME_gtFine_labelIds.png; give the folder that holds gtFine and leftImg8bit."
        )
    images = ImageFolder(options.images or source, [options.out], option=options.images is not None)
    items, faults, skipped = [], [], Counter[str]()
    for mask in (path for path in found if path.stem.endswith(ending)):
        split, city, name = split_of(mask.relative_to(source).parent), mask.parent.name, mask.stem.removesuffix(ending)
        if split == "test":
            skipped["test images, whose masks are not published"] += 1
            continue
        try:
            image = images.find_stem(f"{city}/{name}{_IMAGE_ENDING}", mask)
        except DataError as error:
            faults.append(error)
        else:
            items.append(Item(f"{city}/{name}", split or "train", image, remapping(mask, tables[ending]), mask))
    return Conversion(items, {"preset": "cityscapes"}, faults, skipped=skipped)
