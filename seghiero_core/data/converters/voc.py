"""PASCAL VOC: palette masks of SegmentationClass, also as exported by CVAT (labelmap.txt) and labelme."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np

from seghiero_core.data.converters.classes import IGNORE, UNLABELED_IGNORED, NamedClasses, checked_name, named_classes
from seghiero_core.data.converters.conversion import RGB, Conversion, Item, Options, remapping, split_of
from seghiero_core.data.converters.image_files import ImageFolder, folders_named
from seghiero_core.data.converters.painted import color_table, read_painted
from seghiero_core.errors import DataError, UsageError

_TREE = {
    "vehicle": ("aeroplane", "bicycle", "boat", "bus", "car", "motorbike", "train"),
    "household": ("bottle", "chair", "diningtable", "pottedplant", "sofa", "tvmonitor"),
    "animal": ("bird", "cat", "cow", "dog", "horse", "sheep"),
}
"""The published groups; person, a group of one, is a class."""
_NAMES = ("background", *sorted((*(name for names in _TREE.values() for name in names), "person")))
_ADVICE = "Add them to labelmap.txt, or pass colors of pixels to ignore to --ignore."


def read_voc(source: Path, options: Options) -> Conversion:
    """Find the masks of SegmentationClass, and the lists of ImageSets/Segmentation.

    Args:
        source: A folder such as VOCdevkit/VOC2012, or one above it.
        options: What the user chose.

    Returns:
        The images. Without labelmap.txt or class_names.txt, they have the 21 classes of VOC.

    Raises:
        UsageError: When there is no folder SegmentationClass, or more than one.
        DataError: When a list of classes or images is damaged.
    """
    folders = folders_named(source, "SegmentationClass", without=options.out)
    if len(folders) != 1:
        found = f"the folders {folders[0]} and {folders[1]}" if folders else "no folder SegmentationClass"
        raise UsageError(f"{source} has {found}; give one folder such as VOCdevkit/VOC2012.")
    masks = folders[0]
    root = masks.parent
    names, colors = _classes(root)
    if colors:
        ignored = set(options.ignored_colors) | ({(224, 224, 192)} - set(colors.values()))  # VOC's color of borders
        if clash := ignored & set(colors.values()):
            raise UsageError(f"--ignore: {','.join(map(str, clash.pop()))} is the color of a class in labelmap.txt.")
        named = named_classes(names, options, unlabeled=UNLABELED_IGNORED, colors=colors)
        values = {color: named.values.get(name, named.ignore) for name, color in colors.items()}
        table = color_table(values | dict.fromkeys(ignored, named.ignore))
    elif options.ignored_colors:
        raise UsageError(f"--ignore: the masks in {masks} hold palette indices; only labelmap.txt makes use of colors.")
    else:
        parents = {name: group for group, members in _TREE.items() for name in members} if names == _NAMES else None
        named = named_classes(names, options, unlabeled=UNLABELED_IGNORED, parents=parents)
    images = ImageFolder(options.images or root / "JPEGImages", option=options.images is not None)
    items, faults, skipped = [], [], Counter[str]()
    for name, split in _listed(root, masks).items():
        mask = masks / f"{name}.png"
        if not mask.is_file():
            if split == "test":
                skipped["test images without a mask"] += 1
            else:
                faults.append(DataError(f"{root / 'ImageSets'} lists '{name}', but {mask} doesn't exist; add it."))
            continue
        try:
            image = images.find_stem(name, mask)
        except DataError as error:
            faults.append(error)
            continue
        draw = partial(_draw, mask, table) if colors else remapping(mask, _indices(names, named))
        items.append(Item(name, split or "train", image, draw, mask))
    return Conversion(items, named.section, faults, named.without_label, skipped)


def _indices(names: tuple[str, ...], named: NamedClasses) -> dict[int, int]:
    return {index: named.values.get(name, named.ignore) for index, name in enumerate(names)} | {IGNORE: named.ignore}


def _classes(root: Path) -> tuple[tuple[str, ...], dict[str, RGB]]:
    """The names of the classes, by palette index, and their colors where the masks are painted in these."""
    labelmap, listed = root / "labelmap.txt", root / "class_names.txt"
    if labelmap.is_file():
        colors: dict[str, RGB] = {}
        for number, line in enumerate(labelmap.read_text(encoding="utf-8-sig").splitlines(), start=1):
            if not line.strip() or line.startswith("#"):
                continue
            where = f"{labelmap}, line {number}"
            # "name:r,g,b:parts:actions"; a name may have colons
            name, color, *_ = line.rsplit(":", 3) if line.count(":") >= 3 else ("", "")
            rgb = [int(word) for word in color.split(",") if word.strip().isdigit()]
            if len(rgb) != 3 or max(rgb) > 255:
                raise DataError(f"{where}: expected 'name:r,g,b:parts:actions', found '{line}'; correct it.")
            colors[checked_name(name, where)] = (rgb[0], rgb[1], rgb[2])
        if len(set(colors.values())) < len(colors) or not colors:
            raise DataError(f"{labelmap}: every class needs a color of its own; correct it.")
        return tuple(colors), colors
    if listed.is_file():
        lines = listed.read_text(encoding="utf-8-sig").splitlines()
        names = [checked_name(line.strip(), f"{listed}, line {i}") for i, line in enumerate(lines, start=1)]
        names = names[1:] if names[:1] == ["__ignore__"] else names
        if len(set(names)) < len(names) or not names:
            raise DataError(f"{listed}: expected a name of its own for each class, one per line; correct it.")
        return tuple(names), {}
    return _NAMES, {}


def _listed(root: Path, masks: Path) -> dict[str, str | None]:
    """The split of each image: by the lists train.txt, val.txt and test.txt, else None."""
    split_by_name: dict[str, str | None] = {}
    lists = (root / "ImageSets" / "Segmentation").glob("*.txt")
    for path in sorted(lists, key=lambda path: (not split_of(path.stem), path)):  # trainval.txt after the others
        for line in path.read_text(encoding="utf-8-sig").splitlines():
            if name := line.strip():
                split_by_name.setdefault(name, split_of(path.stem))
    return split_by_name or {mask.stem: None for mask in sorted(masks.glob("*.png")) if not mask.name.startswith(".")}


def _draw(mask: Path, table: np.ndarray, counts: Counter[str]) -> np.ndarray:
    return read_painted(mask, table, _ADVICE)
