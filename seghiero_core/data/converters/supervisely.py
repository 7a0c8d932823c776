"""Supervisely: a project with meta.json, and for each image a JSON file with polygons, bitmaps and rectangles.

Points are pixels, and belong to what they bound: a polygon contains its border, and a hole its own. Later objects are
drawn over earlier ones.
"""

from __future__ import annotations

import zlib
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from seghiero_core.data.coco import NO_AREA, OBJECTS, OVERLAPS, UNLABELED, paint
from seghiero_core.data.converters.classes import NamedClasses, named_classes, unique_names
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
from seghiero_core.data.converters.image_files import ImageFolder, folders_named
from seghiero_core.data.converters.shapes import checked_points, decode_base64, place_bitmap, read_bitmap
from seghiero_core.errors import DataError, UsageError, nearest

HOLES = "holes"
_LARGEST = 1 << 28  # bytes of an unpacked bitmap


def read_supervisely(source: Path, options: Options) -> Conversion:
    """Find the annotations of a project.

    Args:
        source: The folder with meta.json, or that file.
        options: What the user chose.

    Returns:
        The images. Data sets called train and val, or else tags of these names, are the splits.

    Raises:
        UsageError: When annotations are missing.
        DataError: When meta.json is damaged.
    """
    meta = source if source.is_file() else source / "meta.json"
    if not meta.is_file():
        raise UsageError(f"{source} has no meta.json; give the folder of a Supervisely project.")
    root = meta.parent
    classes = get(load_json(meta), "classes", list, str(meta))
    titles = unique_names(
        (get(each, "title", str, f"{meta}, classes {i}"), f"{meta}, classes {i}") for i, each in enumerate(classes)
    )
    colors = {each["title"]: _rgb(each["color"]) for each in classes if _rgb(each.get("color"))}
    named = named_classes(titles, options, colors=colors)
    images = ImageFolder(options.images, [options.out], option=True) if options.images else None
    items, faults = [], []
    for folder in folders_named(root, "ann", without=options.out):
        for path in sorted(folder.rglob("*.json")):
            try:
                items.append(_item(path, folder, root, images, titles, named))
            except DataError as error:
                faults.append(error)
    if not items and not faults:
        raise UsageError(f"{root} has no DATASET/ann/IMAGE.json; give the folder of a Supervisely project.")
    return Conversion(items, named.section, faults, named.without_label)


def _item(
    path: Path, folder: Path, root: Path, images: ImageFolder | None, titles: list[str], named: NamedClasses
) -> Item:
    file_name = path.relative_to(folder).as_posix().removesuffix(".json")  # as in img: street.jpg.json
    image = folder.parent / "img" / file_name
    if images is not None:
        image = images.find(file_name, path)
    elif not image.is_file():
        raise DataError(
            f"{path}: {image} does not exist; add the image, or name the folder of the images with --images."
        )
    document = load_json(path)
    size_of(get(document, "size", dict, str(path)), "height", "width", str(path))
    for i, each in enumerate(get(document, "objects", list, str(path))):
        title = get(each, "classTitle", str, f"{path}, objects {i}")
        if title not in titles:
            raise DataError(
                f"{path}, objects {i}: the class '{title}' is not in meta.json.{nearest(title, titles)} Add it, or "
                "correct the name."
            )
    data_set = folder.parent.relative_to(root)
    split = split_of(data_set) or _tagged(document) or "train"
    name = output_name(Path(data_set, file_name).as_posix(), split)
    return Item(name, split, image, partial(_draw, path, named), path)


def _tagged(document: dict[str, Any]) -> str | None:
    """The split of an image by its tags, such as "train"."""
    tags = document.get("tags")
    names = [str(tag.get("name", "")) for tag in tags if isinstance(tag, dict)] if isinstance(tags, list) else []
    return next(filter(None, map(split_of, names)), None)


def _draw(path: Path, named: NamedClasses, counts: Counter[str]) -> np.ndarray:
    document = load_json(path)
    shape = size_of(document["size"], "height", "width", str(path))
    mask = np.full(shape, named.background, dtype=np.int32)
    drawn = np.zeros(shape, dtype=bool)
    for i, each in enumerate(document["objects"]):
        where = f"{path}, objects {i}"
        kind = get(each, "geometryType", str, where)
        if kind == "polygon":
            inside = _polygon(get(each, "points", dict, where), shape, where, counts)
        elif kind == "rectangle":
            inside = _rectangle(get(each, "points", dict, where), shape, where)
        elif kind == "bitmap":
            inside = _bitmap(get(each, "bitmap", dict, where), shape, where)
        else:
            counts[NO_AREA] += 1
            continue
        counts[OBJECTS] += 1
        counts[UNLABELED] += each["classTitle"] not in named.values
        counts[OVERLAPS] += paint(mask, drawn, inside, named.values.get(each["classTitle"], named.ignore))
    return mask


def _polygon(points: dict[str, Any], shape: tuple[int, int], where: str, counts: Counter[str]) -> np.ndarray:
    rings = [get(points, "exterior", list, where), *(points.get("interior") or [])]
    counts[HOLES] += len(rings) - 1
    outer, *holes = (_fill(checked_points(ring, shape, where), shape) for ring in rings)
    for hole in holes:
        outer &= ~hole
    return outer


def _fill(points: list[tuple[float, float]], shape: tuple[int, int]) -> np.ndarray:
    picture = Image.new("1", shape[::-1])
    if len(points) > 2:
        ImageDraw.Draw(picture).polygon(points, fill=1, outline=1)
    return np.array(picture)


def _rectangle(points: dict[str, Any], shape: tuple[int, int], where: str) -> np.ndarray:
    corners = checked_points(get(points, "exterior", list, where), shape, where)
    if len(corners) != 2:
        raise DataError(f"{where}: expected 2 points of a rectangle, found {len(corners)}; correct the file.")
    (left, right), (top, bottom) = (sorted(round(value) for value in axis) for axis in zip(*corners, strict=True))
    inside = np.zeros(shape, dtype=bool)
    inside[max(top, 0) : bottom + 1, max(left, 0) : right + 1] = True
    return inside


def _bitmap(bitmap: dict[str, Any], shape: tuple[int, int], where: str) -> np.ndarray:
    """A PNG, compressed with zlib and written as base64: the pixels that are not 0, or not transparent."""
    left, top = checked_points([get(bitmap, "origin", list, where)], shape, where)[0]
    packed = decode_base64(get(bitmap, "data", str, where), where)
    try:
        png = zlib.decompressobj().decompress(packed, _LARGEST)
    except zlib.error as error:
        raise DataError(f"{where}: the bitmap can't be unpacked ({error}); export the file again.") from None
    return place_bitmap(read_bitmap(png, where), round(left), round(top), shape, where)


def _rgb(color: Any) -> tuple[int, int, int] | None:
    """The R, G, B of a text such as "#FF0000"."""
    try:
        red, green, blue = bytes.fromhex(color.removeprefix("#"))
    except (AttributeError, ValueError):
        return None
    return red, green, blue
