"""The JSON file of COCO, read as it is: masks are drawn from its polygons and run lengths."""

from __future__ import annotations

import json
import marshal
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Le

from seghiero_core.data.coco import coco_mask, import_pycocotools
from seghiero_core.data.encoded import decode_image, file_stamp, image_size, inspect_image, read_file, stamp_of
from seghiero_core.data.images import check_same_size
from seghiero_core.errors import DataError, nearest, shorten
from seghiero_core.hierarchy.values import LARGEST_VALUE
from seghiero_core.readers import Bands, Inspection, Reader, as_png, register_reader

_Value = Annotated[int, Ge(0), Le(LARGEST_VALUE)]


@register_reader("coco")
def build(
    key: str,
    bands: Bands | None = None,
    *,
    images: Path,
    annotations: Path,
    categories: list[str | int] | None = None,
    background: _Value | None = None,
    ignore_value: _Value = 255,
) -> Reader:
    """Masks whose values are category ids."""
    import_pycocotools()
    document = _read(annotations, key)
    values = _values(document["categories"], categories, annotations, key)
    if ignore_value in values:
        raise DataError(
            f"{key}: {ignore_value} is the id of a category in {annotations}, and the value of ignored pixels; set "
            "dataset.ignore_value and classes.ignore to another value."
        )
    by_image: dict[Any, list[Any]] = {entry["id"]: [] for entry in document["images"]}
    for annotation in document["annotations"]:
        if annotation["image_id"] not in by_image:
            raise DataError(
                f"{annotations}: annotation {annotation.get('id')} is of image {annotation['image_id']}, "
                "which is not in `images`. Remove it, or add the image."
            )
        by_image[annotation["image_id"]].append(annotation)
    entries = sorted(document["images"], key=lambda entry: entry["file_name"])
    names = [entry["file_name"] for entry in entries]
    if not names:
        raise DataError(f"{annotations} has no images.")
    if len(set(names)) < len(names) or len(by_image) < len(names):
        raise DataError(f"{annotations}: two images have the same id or file_name.")
    if missing := [name for name in names if not (images / name).is_file()]:
        raise DataError(
            f"{key}.images: {len(missing)} of {len(names)} images of {annotations} are not in {images}: "
            f"{shorten(missing)}. Correct the path, or add the images."
        )
    sizes = [(entry["height"], entry["width"]) for entry in entries]
    packed = [marshal.dumps(by_image[entry["id"]]) for entry in entries]  # a hundredth of the objects in memory
    return _CocoReader(images, annotations, names, sizes, packed, (values, ignore_value, background), bands)


def _read(path: Path, key: str) -> dict[str, Any]:
    """The document, with the keys that are needed."""
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{key}.annotations: {path}: {error.strerror}. Correct the path.") from error
    except ValueError as error:
        raise DataError(f"{path} is no JSON file ({error}). Export it again.") from error
    needed = {
        "images": {"id": int, "file_name": str, "height": int, "width": int},
        "annotations": {"image_id": int},
        "categories": {"id": int, "name": str},
    }
    for section, keys in needed.items():
        entries = document.get(section) if isinstance(document, dict) else None
        if not isinstance(entries, list):
            raise DataError(f"{path} has no list `{section}`, as the annotations of COCO have.")
        for position, entry in enumerate(entries):
            for name, kind in keys.items():
                if not isinstance(entry, Mapping) or not isinstance(entry.get(name), kind):
                    expected = "a whole number" if kind is int else "a string"
                    raise DataError(f"{path}: {section}.{position}: expected {expected} as `{name}`.")
    return document


def _values(
    known: list[Mapping[str, Any]], chosen: list[str | int] | None, annotations: Path, key: str
) -> dict[int, int]:
    """The mask value of each category that is drawn: its id."""
    by_name = {category["name"]: category["id"] for category in known}
    ids = set(by_name.values())
    for each in chosen or ():
        if each not in by_name and each not in ids:
            raise DataError(f"{key}: {annotations} has no category '{each}'.{nearest(each, by_name)}")
    return {value: value for value in (ids if chosen is None else {by_name.get(each, each) for each in chosen})}


class _CocoReader(Reader):
    def __init__(
        self,
        images: Path,
        annotations: Path,
        names: list[str],
        sizes: list[tuple[int, int]],
        packed: list[bytes],
        drawing: tuple[dict[int, int], int, int | None],
        bands: Bands | None,
    ) -> None:
        self.images, self.annotations = images, annotations
        self.names, self.sizes, self.packed, self.drawing = names, sizes, packed, drawing
        self.bands = bands

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray, str]:
        return decode_image(self.files(index)[0], None, self.bands), self._draw(index), self.names[index]

    def name(self, index: int) -> str:
        return self.names[index]

    def files(self, index: int) -> tuple[Path, Path]:
        return self.images / self.names[index], self.annotations / self.names[index]

    def size(self, index: int) -> tuple[int, int]:
        return image_size(self.files(index)[0], None, self.bands)

    def encoded(self, index: int) -> tuple[tuple[bytes, str], tuple[bytes, str]]:
        image = self.files(index)[0]
        return (read_file(image), image.suffix.lower()), (as_png(self._draw(index)), ".png")

    def inspect(self, index: int, *, decode: bool) -> Inspection:
        image, mask = self.files(index)
        found, _ = inspect_image(image, None, self.bands, decode=decode)
        check_same_size(image, found.size, mask, self.sizes[index])
        return found._replace(mask=self._draw(index) if decode else None)

    def stamp(self, index: int) -> str | None:
        stamp = file_stamp(self.files(index)[0], self.annotations)
        return stamp and f"{stamp} {self.drawing}{stamp_of(self.bands)}"

    def _draw(self, index: int) -> np.ndarray:
        values, ignore, background = self.drawing
        found = marshal.loads(self.packed[index])
        try:
            return coco_mask(found, *self.sizes[index], values, ignore, background=background)
        except ValueError as error:
            raise DataError(f"{self.annotations}: {self.names[index]}: {error}.") from None
