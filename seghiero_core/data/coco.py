"""Masks from the annotations of COCO: polygons and run lengths, drawn from large to small.

A polygon's coordinates are in px from the corner of the image, so the center of pixel 0 is at 0.5. A pixel belongs to a
polygon if its center lies inside, up to the fifths of a pixel that pycocotools calculates with.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from seghiero_core.errors import UsageError

OBJECTS, OVERLAPS, CROWDS = "objects", "overlapping_pixels", "crowd_regions"
UNLABELED, BOXES, NO_AREA = "objects_without_label", "objects_without_mask", "objects_without_area"
"""What is counted while masks are drawn."""

_FARTHEST = 16  # times the image's size: coordinates beyond that are mistakes, and take much memory to draw


def coco_mask(
    annotations: Iterable[Mapping[str, Any]],
    height: int,
    width: int,
    values: Mapping[int, int],
    ignore: int,
    *,
    background: int | None = None,
    counts: Counter[str] | None = None,
) -> np.ndarray:
    """Draw the annotations of one image.

    Smaller objects are drawn over larger ones, so that what lies on or in an object stays visible. At the bottom lie
    crowd regions, and the boxes of objects without a mask: their pixels are ignored unless another object covers them.

    Args:
        annotations: Entries of `annotations`, all of one image.
        height: Height of the image, px.
        width: Width of the image, px.
        values: The mask value of each category id. The pixels of other categories are ignored.
        ignore: The value of ignored pixels.
        background: The value of pixels without an object. Default: `ignore`.
        counts: Increased by what was drawn: objects, crowd regions, overlapping pixels, and so on.

    Returns:
        H,W int32 mask values.

    Raises:
        UsageError: When pycocotools is not installed.
        ValueError: When an annotation is damaged; the message names it.
    """
    counts = Counter() if counts is None else counts
    regions = []
    for position, annotation in enumerate(annotations):
        try:
            region, kind = _region(annotation, height, width)
        except (ValueError, TypeError, OverflowError) as error:
            name = annotation.get("id", f"number {position}") if isinstance(annotation, Mapping) else position
            raise ValueError(f"annotation {name}: {error}") from None
        if region is None:
            counts[NO_AREA] += 1
            continue
        value = ignore if kind in (CROWDS, BOXES) else values.get(annotation["category_id"], ignore)
        counts[kind] += 1
        if kind == OBJECTS and annotation["category_id"] not in values:
            counts[UNLABELED] += 1
        regions.append(((kind == OBJECTS, -sum(region[1::2])), region, value))
    mask = np.full((height, width), ignore if background is None else background, dtype=np.int32)
    drawn = np.zeros((height, width), dtype=bool)
    for (is_object, _), region, value in sorted(regions, key=lambda entry: entry[0]):
        columns, inside = _unpack(region, height)
        if is_object:
            counts[OVERLAPS] += paint(mask[:, columns], drawn[:, columns], inside, value)
        else:
            mask[:, columns][inside] = value
    return mask


def paint(mask: np.ndarray, drawn: np.ndarray, inside: np.ndarray, value: int) -> int:
    """Draw an object over those before it.

    Args:
        mask: H,W mask values, changed in place.
        drawn: H,W bool, the pixels of the objects so far; changed in place.
        inside: H,W bool, the pixels of the object.
        value: Its mask value.

    Returns:
        How many pixels got another value than an earlier object gave them.
    """
    changed = int((inside & drawn & (mask != value)).sum())
    mask[inside] = value
    drawn |= inside
    return changed


def fill_polygon(points: Sequence[Any], height: int, width: int) -> np.ndarray:
    """Fill one polygon by the rule of this module.

    Args:
        points: N pairs (x, y) in px, N >= 3.
        height: Height of the image, px.
        width: Width of the image, px.

    Returns:
        H,W bool.

    Raises:
        UsageError: When pycocotools is not installed.
        ValueError: When a coordinate is not a number, or far outside the image.
    """
    flat = [number for point in points for number in point]
    filled = np.zeros((height, width), dtype=bool)
    columns, inside = _unpack(_polygon_runs([_checked_ring(flat, height, width)], height, width), height)
    filled[:, columns] = inside
    return filled


def import_pycocotools() -> Any:
    """Import the module of pycocotools that draws polygons.

    Returns:
        `pycocotools.mask`.

    Raises:
        UsageError: When it is not installed.
    """
    try:
        from pycocotools import mask
    except ImportError:
        raise UsageError("drawing polygons needs pycocotools; install it: pip install 'seghiero[coco]'.") from None
    return mask


def _polygon_runs(rings: list[list[float]], height: int, width: int) -> list[int]:
    """The run lengths of the pixels in any of some polygons."""
    coder = import_pycocotools()
    # Not its `decode`, which warns about numpy 2.
    return _decode_runs(coder.merge(coder.frPyObjects(rings, height, width))["counts"].decode())


def _unpack(runs: list[int], height: int) -> tuple[slice, np.ndarray]:
    """The columns from the first pixel inside to the last, and which of their pixels are (H,columns bool)."""
    start, end = runs[0], sum(runs) - (runs[-1] if len(runs) % 2 else 0)
    first, last = start // height, max(-(-end // height), start // height)
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)[first * height : last * height]
    return slice(first, last), flat.reshape(last - first, height).T


def _region(annotation: Mapping[str, Any], height: int, width: int) -> tuple[list[int] | None, str]:
    """The run lengths of an annotation, None if it has no area, and what it counts as."""
    if not isinstance(annotation.get("category_id"), int):
        raise ValueError(f"expected a whole number as category_id, found {annotation.get('category_id')!r}")
    shape = annotation.get("segmentation")
    kind = CROWDS if annotation.get("iscrowd") else OBJECTS
    if not shape:
        box = annotation.get("bbox")
        if not box:
            return None, kind
        if not isinstance(box, list) or len(box) != 4:
            raise ValueError(f"expected a bbox of 4 numbers, found {box!r}")
        x, y, w, h = box
        shape, kind = [[x, y, x + w, y, x + w, y + h, x, y + h]], BOXES
    if isinstance(shape, Mapping):
        return _checked_runs(shape, height, width), kind
    if not isinstance(shape, list) or not all(isinstance(ring, list) for ring in shape):
        raise ValueError("expected a segmentation of polygons (a list of lists) or run lengths")
    rings = [_checked_ring(ring, height, width) for ring in shape if len(ring) >= 6]
    return (_polygon_runs(rings, height, width) if rings else None), kind


def _checked_ring(ring: Sequence[Any], height: int, width: int) -> list[float]:
    """A polygon as flat list; ValueError for one that pycocotools would draw wrongly or run out of memory with."""
    if len(ring) % 2:
        raise ValueError(f"expected pairs of coordinates, found {len(ring)} numbers")
    strange = next((x for x in ring if isinstance(x, bool) or not isinstance(x, int | float)), None)
    if strange is not None:
        raise ValueError(f"expected coordinates, found {strange!r}")
    xy = np.array(ring, dtype=np.float64).reshape(-1, 2)
    if not (np.abs(xy) <= _FARTHEST * np.array([width, height])).all():
        raise ValueError(f"has coordinates far outside the image, which is {height}x{width} px (HxW)")
    return xy.ravel().tolist()


def _checked_runs(shape: Mapping[str, Any], height: int, width: int) -> list[int]:
    """The run lengths of an annotation; ValueError where they don't fill the image."""
    runs = shape.get("counts")
    if shape.get("size") != [height, width]:
        raise ValueError(f"its run lengths have the size {shape.get('size')}, the image {[height, width]}")
    if isinstance(runs, str):
        runs = _decode_runs(runs)
    if not isinstance(runs, list) or not all(isinstance(run, int) and run >= 0 for run in runs):
        raise ValueError("expected run lengths, whole numbers from 0 or COCO's text of them")
    if sum(runs) != height * width:
        raise ValueError(f"its run lengths cover {sum(runs)} px, the image has {height * width}")
    return runs


def _decode_runs(text: str) -> list[int]:
    """Run lengths from COCO's text: 5 bits per character, low first; from the fourth on, differences to two before."""
    runs: list[int] = []
    number = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"its run lengths have the character {character!r}")
        number |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                number -= 1 << shift
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
            number = shift = 0
    if shift:
        raise ValueError("its run lengths end too early")
    return runs
