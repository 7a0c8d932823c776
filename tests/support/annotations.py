"""Masks written as annotations: polygons along the edges of pixels, run lengths, and whole files of some formats."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

NAMES = {0: "sky", 1: "building", 2: "pole", 3: "road", 4: "pavement", 5: "tree", 6: "sign"}
GROUPS = {"building": "structure", "pole": "structure", "sign": "structure", "road": "ground", "pavement": "ground"}


def rings_of(mask: np.ndarray) -> list[list[tuple[int, int]]]:
    """The closed lines (x, y) along the edges of a mask (H,W bool), with the inside on their right: one per connected
    region, counting pixels that share an edge, and one per hole."""
    padded = np.pad(mask, 1)
    follow: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    inside, above, left = padded[1:-1, 1:-1], padded[:-2, 1:-1], padded[1:-1, :-2]
    below, right = padded[2:, 1:-1], padded[1:-1, 2:]
    for edge, start, end in (
        (inside & ~above, (0, 0), (1, 0)),
        (inside & ~right, (1, 0), (1, 1)),
        (inside & ~below, (1, 1), (0, 1)),
        (inside & ~left, (0, 1), (0, 0)),
    ):
        for y, x in np.argwhere(edge).tolist():
            follow[x + start[0], y + start[1]].append((x + end[0], y + end[1]))
    rings = []
    while follow:
        start = here = next(iter(follow))
        ring, before = [start], None
        while True:
            options = follow[here]
            if len(options) > 1 and before:  # two regions touch at a corner: turn right, and stay in this one
                dx, dy = here[0] - before[0], here[1] - before[1]
                step = (here[0] - dy, here[1] + dx)
                options.remove(step)
            else:
                step = options.pop()
            if not options:
                del follow[here]
            before, here = here, step
            if here == start:
                break
            ring.append(here)
        rings.append(_without_collinear(ring))
    return rings


def polygons_of(mask: np.ndarray) -> list[list[tuple[int, int]]]:
    """One polygon per region of a mask: formats without holes get each hole joined by a cut of no width."""
    rings = rings_of(mask)
    outer = [ring for ring in rings if _area(ring) > 0]
    for hole in (ring for ring in rings if _area(ring) < 0):
        around = min((ring for ring in outer if _contains(ring, hole)), key=_area)
        around.extend([around[0], *hole, hole[0]])
    return outer


def runs_of(mask: np.ndarray) -> dict[str, Any]:
    """Uncompressed run lengths of a mask, as COCO writes crowd regions."""
    flat = mask.T.ravel()
    changes = np.flatnonzero(np.diff(np.concatenate([[0], flat.astype(int), [1 - int(flat[-1])]])))
    return {"size": list(mask.shape), "counts": np.diff([0, *changes.tolist()]).tolist()}


def write_coco(
    path: Path, masks: Mapping[str, np.ndarray], names: Mapping[int, str], *, polygons: bool, groups: Mapping[str, str]
) -> None:
    """Write an instances file: an annotation per class and image, or per region where they are polygons."""
    annotations: list[dict[str, Any]] = []
    for image, mask in enumerate(masks.values()):
        for value in names:
            inside = mask == value
            shapes = (
                [[[p for xy in ring for p in xy]] for ring in polygons_of(inside)] if polygons else [runs_of(inside)]
            )
            annotations += [
                {"id": len(annotations) + i, "image_id": image, "category_id": value + 1, "segmentation": shape}
                for i, shape in enumerate(shapes if inside.any() else [])
            ]
    document = {
        "images": [
            {"id": i, "file_name": name, "height": mask.shape[0], "width": mask.shape[1]}
            for i, (name, mask) in enumerate(masks.items())
        ],
        "annotations": annotations,
        "categories": [
            {"id": value + 1, "name": name, "supercategory": groups.get(name, "none")} for value, name in names.items()
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


def write_labelme(path: Path, image: str, mask: np.ndarray, names: Mapping[int, str]) -> None:
    """Write the file of one image: a polygon per region, larger ones first."""
    shapes = [
        {"label": name, "shape_type": "polygon", "points": [list(point) for point in polygon], "flags": {}}
        for value, name in names.items()
        for polygon in polygons_of(mask == value)
    ]
    shapes.sort(key=lambda shape: -abs(_area(shape["points"])))
    document = {"version": "5.5.0", "shapes": shapes, "imagePath": image, "imageData": None}
    document |= {"imageHeight": mask.shape[0], "imageWidth": mask.shape[1]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


def _without_collinear(ring: list[tuple[int, int]]) -> list[tuple[int, int]]:
    before, after = ring[-1:] + ring[:-1], ring[1:] + ring[:1]
    return [
        point
        for a, point, b in zip(before, ring, after, strict=True)
        if (point[0] - a[0]) * (b[1] - point[1]) != (point[1] - a[1]) * (b[0] - point[0])
    ]


def _area(ring: Any) -> float:
    """Positive where the inside is on the right, with y pointing down."""
    x, y = np.array(ring).T
    return float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2)


def _contains(ring: list[tuple[int, int]], hole: list[tuple[int, int]]) -> bool:
    """Whether the pixel at the hole's first corner from above lies in a ring: even-odd along its row."""
    y, x = min((y, x) for x, y in hole)
    crossings = sum(
        x0 == x1 > x and min(y0, y1) < y + 0.5 < max(y0, y1)
        for (x0, y0), (x1, y1) in zip(ring, ring[1:] + ring[:1], strict=True)
    )
    return crossings % 2 == 1


def read_output(out: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict]:
    """The masks of all splits by name, as names of labels ('' where ignored), the images, and the `classes`."""
    from seghiero_core.config.loading import load_config

    classes = load_config(out / "cfg.yaml").classes
    table = np.full(65536, "?", dtype=object)
    for value, name in classes.labels.items():
        table[value] = name
    table[classes.ignore] = ""
    names, images = {}, {}
    for path in sorted(out.glob("*/masks/**/*.png")):
        split, _, *rest = path.relative_to(out).parts
        name = str(Path(*rest).with_suffix(""))
        names[name] = table[np.asarray(Image.open(path))]
        (image,) = (out / split / "images").glob(f"{name}.*")
        images[name] = np.asarray(Image.open(image))
    return names, images, yaml.safe_load((out / "cfg.yaml").read_text(encoding="utf-8"))["classes"]


def as_names(mask: np.ndarray, names: Mapping[int, str] = NAMES) -> np.ndarray:
    table = np.full(256, "", dtype=object)
    for value, name in names.items():
        table[value] = name
    return table[mask]
