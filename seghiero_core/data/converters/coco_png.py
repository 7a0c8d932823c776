"""COCO's PNG files: the segments of panoptic annotations, and the stuffthingmaps of COCO-Stuff."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from seghiero_core.data.coco import CROWDS, OBJECTS, UNLABELED
from seghiero_core.data.converters.classes import NamedClasses
from seghiero_core.data.converters.conversion import Conversion, Options, get
from seghiero_core.data.converters.image_files import ImageFolder, folders_named, items_of_masks
from seghiero_core.data.images import open_image
from seghiero_core.errors import DataError, UsageError
from seghiero_core.hierarchy.presets import read_preset

_STUFF = "coco-stuff"
_IGNORE = 255


def segments_drawer(
    folder: Path, annotations: list[Any], where: str, values: dict[int, int], named: NamedClasses
) -> Callable[[Counter[str]], np.ndarray]:
    """Make the `draw` of a panoptic image.

    Args:
        folder: The folder of the PNG files, whose color is the id of the segment, R + 256 G + 65536 B.
        annotations: The one annotation of the image.
        where: What to call the image in messages.
        values: The mask value of each category id.
        named: The classes.

    Returns:
        A function that returns the H,W int32 mask values, and raises DataError for damaged files.
    """

    def draw(counts: Counter[str]) -> np.ndarray:
        if len(annotations) != 1:
            raise DataError(f"{where}: expected one panoptic annotation, found {len(annotations)}; correct the file.")
        path = folder / Path(get(annotations[0], "file_name", str, where)).name
        with open_image(path) as image:
            rgb = np.array(image.convert("RGB"), dtype=np.int32)
        ids = rgb[..., 0] | rgb[..., 1] << 8 | rgb[..., 2] << 16
        value_of = {0: named.background}
        for segment in annotations[0]["segments_info"]:
            category, is_crowd = segment["category_id"], bool(segment.get("iscrowd"))
            value_of[get(segment, "id", int, where)] = named.ignore if is_crowd else values.get(category, named.ignore)
            counts[CROWDS if is_crowd else OBJECTS] += 1
            counts[UNLABELED] += not is_crowd and category not in values
        found, inverse = np.unique(ids, return_inverse=True)
        unknown = [each for each in found.tolist() if each not in value_of]
        if unknown:
            raise DataError(f"{path} has the segment {unknown[0]}, which {where} doesn't list; export it again.")
        return np.array([value_of[each] for each in found.tolist()], np.int32)[inverse].reshape(ids.shape)

    return draw


def read_stuff(source: Path, options: Options) -> Conversion:
    """Find the masks of stuffthingmaps.

    Args:
        source: The folder that holds stuffthingmaps and the folders of images.
        options: What the user chose.

    Returns:
        The images, with the classes of the preset coco-stuff.

    Raises:
        UsageError: When there is no folder stuffthingmaps, or more than one.
    """
    folders = folders_named(source, "stuffthingmaps", without=options.out)
    if len(folders) != 1:
        found = f"the folders {folders[0]} and {folders[1]}" if folders else "no JSON file and no folder stuffthingmaps"
        raise UsageError(f"{source} has {found}; give the folder of one data set, or a JSON file.")
    if options.classes is not None or options.unlabeled is not None:
        raise UsageError("--config and --unlabeled have no effect on stuffthingmaps, whose classes are known.")
    table = {value: value for value in read_preset(_STUFF)["labels"]} | {_IGNORE: _IGNORE}
    images = ImageFolder(options.images or source, [options.out, *folders], option=options.images is not None)
    items, faults = items_of_masks(folders[0], folders[0], images, table)
    return Conversion(items, {"preset": _STUFF}, faults)
