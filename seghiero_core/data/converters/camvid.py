"""CamVid: the folders of the SegNet tutorial with 11 classes, and the original pictures in 32 class colors."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np

from seghiero_core.data.converters.conversion import RGB, Conversion, Item, Options, remapping, split_of
from seghiero_core.data.converters.image_files import ImageFolder, folders_named, masks_below
from seghiero_core.data.converters.painted import color_table, read_painted
from seghiero_core.errors import DataError, UsageError, nearest
from seghiero_core.hierarchy.presets import read_preset

_SEGNET_TABLE = {**{value: value for value in range(11)}, 11: 255, 255: 255}  # 11: unlabelled
_COLORED, _VOID = "camvid-32", "Void"
_ADVICE = "Pass colors of pixels to ignore to --ignore."


def read_camvid(source: Path, options: Options) -> Conversion:
    """Find the masks in either layout.

    Args:
        source: The folder that holds train, trainannot, val and valannot, or images and their NAME_L.png.
        options: What the user chose.

    Returns:
        The images, with 11 classes or 32.

    Raises:
        UsageError: When the folder has neither layout.
        DataError: When a list of colors has an unknown class.
    """
    annotated = folders_named(source, *(f"{split}annot" for split in ("train", "val", "test")), without=options.out)
    if annotated:
        return _read_segnet(annotated, options)
    masks = [path for path in masks_below(source, options.out) if path.stem.endswith("_L")]
    if not masks:
        raise UsageError(
            f"{source} has neither trainannot and valannot (11 classes) nor masks NAME_L.png (32 colors); give the "
            "folder of CamVid."
        )
    images = ImageFolder(options.images or source, [options.out], option=options.images is not None)
    values = _color_values(source, options)
    table = color_table(values)
    items, faults = [], []
    for mask in masks:
        name = mask.stem.removesuffix("_L")
        try:
            image = images.find_stem(name, mask)
        except DataError as error:
            faults.append(error)
        else:
            split = split_of(mask.relative_to(source).parent) or "train"
            items.append(Item(name, split, image, partial(_draw, mask, table), mask))
    return Conversion(items, {"preset": _COLORED}, faults)


def _read_segnet(annotated: list[Path], options: Options) -> Conversion:
    items, faults = [], []
    for folder in annotated:
        split = folder.name.removesuffix("annot")
        beside = options.images or folder.with_name(split)
        images = ImageFolder(beside, option=options.images is not None)
        for mask in masks_below(folder):
            try:
                image = images.find_stem(mask.stem, mask, beside / split)
            except DataError as error:
                faults.append(error)
            else:
                items.append(Item(mask.stem, split, image, remapping(mask, _SEGNET_TABLE), mask))
    return Conversion(items, {"preset": "camvid"}, faults)


def _color_values(source: Path, options: Options) -> dict[RGB, int]:
    """The mask value of each color, from class_dict.csv or label_colors.txt where there is one."""
    preset = read_preset(_COLORED)
    value_of = {name: value for value, name in preset["labels"].items()} | {_VOID: preset["ignore"]}
    colors = {name: tuple(color) for name, color in preset["colors"].items()} | {_VOID: (0, 0, 0)}
    for path in (source / "class_dict.csv", source / "label_colors.txt"):
        if path.is_file():
            colors = _listed_colors(path, value_of)
            break
    values = {color: value_of[name] for name, color in colors.items()}
    return values | dict.fromkeys(options.ignored_colors, preset["ignore"])


def _listed_colors(path: Path, value_of: dict[str, int]) -> dict[str, RGB]:
    """Colors by name from lines "NAME,R,G,B" below a header, or "R G B NAME"."""
    colors: dict[str, RGB] = {}
    is_csv = path.suffix == ".csv"
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        words = line.split(",") if is_csv else line.split()
        if not line.strip() or (is_csv and number == 1):
            continue
        name, rgb = (words[0], words[1:4]) if is_csv else (words[-1], words[:3])
        color = [int(word) for word in rgb if word.strip().isdigit()]
        if len(color) != 3 or max(color) > 255:
            raise DataError(f"{path}, line {number}: expected a class and its R, G, B, found '{line}'; correct it.")
        if name.strip() not in value_of:
            raise DataError(
                f"{path}, line {number}: '{name.strip()}' is not one of CamVid's 32 classes."
                f"{nearest(name.strip(), value_of)} For other classes, use the format colors."
            )
        colors[name.strip()] = (color[0], color[1], color[2])
    return colors


def _draw(mask: Path, table: np.ndarray, counts: Counter[str]) -> np.ndarray:
    return read_painted(mask, table, _ADVICE)
