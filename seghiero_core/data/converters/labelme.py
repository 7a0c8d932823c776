"""labelme: for each image a JSON file with polygons, rectangles, circles and masks.

Coordinates are px from the corner of the image, as labelme shows them: a pixel belongs to a shape if its center lies
inside. Later shapes are drawn over earlier ones.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from seghiero_core.data.coco import NO_AREA, OBJECTS, OVERLAPS, UNLABELED, fill_polygon, paint
from seghiero_core.data.converters.classes import NamedClasses, checked_name, named_classes
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
from seghiero_core.data.converters.shapes import checked_points, decode_base64, place_bitmap, read_bitmap
from seghiero_core.data.pairing import files_below
from seghiero_core.errors import DataError, UsageError

_IGNORED = "__ignore__"  # labelme's name for pixels to ignore
_POLYGONS = ("polygon", "oriented_rectangle")


def read_labelme(source: Path, options: Options) -> Conversion:
    """Find labelme's files.

    Args:
        source: A folder with JSON files, or one file.
        options: What the user chose.

    Returns:
        The images. The classes are the labels of all shapes, in alphabetical order, without a tree.

    Raises:
        UsageError: When there is no JSON file.
        DataError: When no file can be read.
    """
    root = source if source.is_dir() else source.parent
    out = options.out.resolve()
    paths = [source] if source.is_file() else [path for path in files_below(root) if path.suffix.lower() == ".json"]
    paths = [path for path in paths if not path.resolve().is_relative_to(out)]
    if not paths:
        raise UsageError(f"{source} has no JSON file of labelme; correct the path.")
    images = ImageFolder(options.images or root, [out], option=options.images is not None)
    found, faults, labels = [], [], set()
    for path in paths:
        try:
            image, own_labels = _read_file(path, images)
        except DataError as error:
            faults.append(error)
        else:
            found.append((path, image))
            labels |= own_labels
    if not found:
        return Conversion([], {}, faults)
    named = named_classes(sorted(labels - {_IGNORED}), options)
    items = []
    for path, image in found:
        relative = path.relative_to(root)
        split = split_of(relative.parent) or "train"
        name = output_name(relative.as_posix(), split)
        items.append(Item(name, split, image, partial(_draw, path, named), path))
    return Conversion(items, named.section, faults, named.without_label)


def _read_file(path: Path, images: ImageFolder) -> tuple[Path, set[str]]:
    """The image of a file, and the labels of its shapes with an area."""
    document = load_json(path)
    labels = set()
    for i, shape in enumerate(get(document, "shapes", list, str(path))):
        label = checked_name(get(shape, "label", (str, int), f"{path}, shapes {i}"), f"{path}, shapes {i}")
        if _has_area(shape):
            labels.add(label)
    size_of(document, "imageHeight", "imageWidth", str(path))
    return images.find(get(document, "imagePath", str, str(path)), path, near=path.parent), labels


def _has_area(shape: dict[str, Any]) -> bool:
    """Whether a shape covers pixels; points and lines don't. In old files every shape is a polygon."""
    kind, points = shape.get("shape_type") or "polygon", shape.get("points")
    return kind in ("rectangle", "circle", "mask") or (
        kind in _POLYGONS and isinstance(points, list) and len(points) > 2
    )


def _draw(path: Path, named: NamedClasses, counts: Counter[str]) -> np.ndarray:
    document = load_json(path)
    height, width = size_of(document, "imageHeight", "imageWidth", str(path))
    mask = np.full((height, width), named.background, dtype=np.int32)
    drawn = np.zeros((height, width), dtype=bool)
    for i, shape in enumerate(document["shapes"]):
        if not _has_area(shape):
            counts[NO_AREA] += 1
            continue
        label = str(shape["label"])
        inside = _inside(shape, (height, width), f"{path}, shapes {i}")
        counts[OBJECTS] += 1
        counts[UNLABELED] += label not in named.values and label != _IGNORED
        counts[OVERLAPS] += paint(mask, drawn, inside, named.values.get(label, named.ignore))
    return mask


def _inside(shape: dict[str, Any], size: tuple[int, int], where: str) -> np.ndarray:
    """H,W bool: the pixels of a shape."""
    kind = shape.get("shape_type") or "polygon"
    points = checked_points(shape.get("points"), size, where)
    if kind in _POLYGONS:
        return fill_polygon(points, *size)
    if len(points) != 2:
        raise DataError(f"{where}: expected 2 points of a {kind}, found {len(points)}; correct the file.")
    (x0, y0), (x1, y1) = points
    if kind == "rectangle":
        return fill_polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], *size)
    if kind == "circle":  # its center, and a point of its border
        y, x = np.ogrid[: size[0], : size[1]]
        return (x + 0.5 - x0) ** 2 + (y + 0.5 - y0) ** 2 <= (x1 - x0) ** 2 + (y1 - y0) ** 2
    pixels = read_bitmap(decode_base64(get(shape, "mask", str, where), where), where)
    return place_bitmap(pixels, round(x0), round(y0), size, where)
