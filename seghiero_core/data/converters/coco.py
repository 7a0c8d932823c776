"""COCO: JSON files with polygons and run lengths (instances, stuff), or with PNG files of segments (panoptic)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from seghiero_core.data.coco import coco_mask
from seghiero_core.data.converters.classes import (
    BACKGROUND,
    UNLABELED_IGNORED,
    NamedClasses,
    checked_name,
    named_classes,
)
from seghiero_core.data.converters.coco_png import read_stuff, segments_drawer
from seghiero_core.data.converters.conversion import (
    Conversion,
    Item,
    Options,
    get,
    load_json,
    output_name,
    size_of,
    split_of,
)
from seghiero_core.data.converters.image_files import ImageFolder
from seghiero_core.data.pairing import files_below
from seghiero_core.errors import DataError, UsageError, shorten

_PREFERRED = ("instances", "panoptic", "stuff")
"""Of the published files, those to read from a folder that has several kinds."""
_SHAPES = ("segmentation", "segments_info")
_NO_GROUP = ("", "none", "null")


@dataclass(frozen=True)
class _File:
    path: Path
    document: dict[str, Any]
    names: dict[int, str]
    """The name of each category id."""
    segments: Path | None
    """The folder of the PNG files, of a panoptic file."""


def read_coco(source: Path, options: Options) -> Conversion:
    """Find the images and annotations of one or more files, or the PNG masks of COCO-Stuff.

    Args:
        source: A JSON file, or a folder with JSON files or with the folder stuffthingmaps.
        options: What the user chose.

    Returns:
        The images. The classes are the categories of all files by name, in a tree of their supercategories.

    Raises:
        UsageError: When there is no annotation file.
        DataError: When a file is damaged.
    """
    paths = [source] if source.is_file() else _annotation_files(source, options.out)
    if not paths:
        return read_stuff(source, options)
    files = [_read_file(path) for path in paths]
    parents = _parents(files)
    has_segments = any(file.segments for file in files)
    is_stuff = all(file.path.name.startswith("stuff") for file in files)
    used = _used_names(files)
    # A category that is only a group of others, as in Roboflow's exports, isn't a label.
    names = list(dict.fromkeys(name for file in files for name in file.names.values()))
    names = [name for name in names if name in used or name not in parents.values()]
    unlabeled = UNLABELED_IGNORED if has_segments or is_stuff else BACKGROUND
    try:
        named = named_classes(names, options, unlabeled=unlabeled, parents=parents)
    except DataError as error:
        raise DataError(f"{shorten(paths)}: {error}") from None
    root = source if source.is_dir() else source.parent
    without = [options.out, *(file.segments for file in files if file.segments)]
    images = ImageFolder(options.images or root, without, option=options.images is not None)
    items: list[Item] = []
    faults: list[DataError] = []
    for file in files:
        _add_items(file, root, images, named, items, faults)
    return Conversion(items, named.section, faults, named.without_label)


def _annotation_files(folder: Path, out: Path) -> list[Path]:
    """The files to read from a folder: those of the first preferred kind that it has, else all."""
    if not folder.is_dir():
        raise UsageError(f"{folder} does not exist; give a JSON file, or the folder that holds it.")
    hidden = out.resolve()
    paths = [
        path
        for path in files_below(folder)
        if path.suffix.lower() == ".json" and not path.resolve().is_relative_to(hidden)
    ]
    kinds = [[path for path in paths if path.name.startswith(kind)] for kind in _PREFERRED]
    return next(filter(None, kinds), paths)


def _read_file(path: Path) -> _File:
    document = load_json(path)
    for key in ("images", "annotations", "categories"):
        get(document, key, list, str(path))
    names: dict[int, str] = {}
    for i, category in enumerate(document["categories"]):
        where = f"{path}, categories {i}"
        number = get(category, "id", int, where)
        if number in names:
            raise DataError(f"{where}: the id {number} is also that of '{names[number]}'; correct the file.")
        names[number] = checked_name(category.get("name"), where)
    annotations = document["annotations"]
    if not any(each.get(key) for each in annotations if isinstance(each, Mapping) for key in _SHAPES):
        found = "only boxes, no masks" if annotations else "no annotations"
        raise DataError(f"{path} has {found}; give a file with polygons or run lengths.")
    if not any("segments_info" in each for each in annotations if isinstance(each, Mapping)):
        return _File(path, document, names, None)
    folder = path.with_suffix("")
    if not folder.is_dir():
        raise DataError(f"{path} is a panoptic file, but {folder} with its PNG files is missing; add it.")
    return _File(path, document, names, folder)


def _parents(files: list[_File]) -> dict[str, str]:
    """The supercategory of each category that has one; it may be a category itself."""
    parents: dict[str, str] = {}
    for file in files:
        for i, category in enumerate(file.document["categories"]):
            name, group = file.names[category["id"]], category.get("supercategory")
            if group is None or str(group).strip().lower() in _NO_GROUP or group == name:
                continue
            group = checked_name(group, f"{file.path}, categories {i}, supercategory")
            if parents.setdefault(name, group) != group:
                raise DataError(
                    f"{file.path}, categories {i}: '{name}' is in '{group}', elsewhere in '{parents[name]}'; correct "
                    "one of the two."
                )
    return parents


def _used_names(files: list[_File]) -> set[str]:
    """The categories that have annotations; DataError for an annotation of an unknown one."""
    used = set()
    for file in files:
        for i, annotation in enumerate(file.document["annotations"]):
            where = f"{file.path}, annotations {i}"
            for entry in get(annotation, "segments_info", list, where) if file.segments else [annotation]:
                number = get(entry, "category_id", int, where)
                if number not in file.names:
                    raise DataError(
                        f"{where}: category_id {number} is not in 'categories'; add the category, or correct the id."
                    )
                used.add(file.names[number])
    return used


def _add_items(
    file: _File, root: Path, images: ImageFolder, named: NamedClasses, items: list[Item], faults: list[DataError]
) -> None:
    values = {number: named.values[name] for number, name in file.names.items() if name in named.values}
    of_image: dict[Any, list[Any]] = defaultdict(list)
    for i, annotation in enumerate(file.document["annotations"]):
        of_image[get(annotation, "image_id", (int, str), f"{file.path}, annotations {i}")].append(annotation)
    split = split_of(file.path.relative_to(root))
    seen = set()
    for i, entry in enumerate(file.document["images"]):
        where = f"{file.path}, images {i}"
        number = get(entry, "id", (int, str), where)
        if number in seen:
            raise DataError(f"{where}: the id {number} is also that of an image before; correct the file.")
        seen.add(number)
        annotations = of_image.pop(number, [])
        try:
            file_name = get(entry, "file_name", str, where)
            size = size_of(entry, "height", "width", where)
            image = images.find(file_name, where, near=file.path.parent, split=split)
        except DataError as error:
            faults.append(error)
            continue
        if file.segments:
            draw = segments_drawer(file.segments, annotations, where, values, named)
        else:
            draw = partial(_draw, annotations, size, values, named, where)
        items.append(Item(output_name(file_name, split or "train"), split or "train", image, draw, file.path))
    if of_image:
        number, annotations = next(iter(of_image.items()))
        raise DataError(
            f"{file.path}: {len(annotations)} annotations are of image {number}, which is not in 'images'; correct "
            "the file."
        )


def _draw(
    annotations: list[Any],
    size: tuple[int, int],
    values: dict[int, int],
    named: NamedClasses,
    where: str,
    counts: Counter[str],
) -> np.ndarray:
    try:
        return coco_mask(annotations, *size, values, named.ignore, background=named.background, counts=counts)
    except ValueError as error:
        raise DataError(f"{where}: {error}; correct the file.") from None
