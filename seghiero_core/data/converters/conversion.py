"""What a reader of a format returns: the images to convert, how to draw their masks, and the classes."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from seghiero_core.data.faults import FileError
from seghiero_core.data.images import read_mask
from seghiero_core.errors import DataError, shorten

RGB = tuple[int, int, int]
"""A color, each channel 0..255."""

_SPLIT_WORDS = re.compile(r"(?<![a-z])(?:(train|training)|(val|valid|validation)|(test|testing))(?![a-z])")


@dataclass(frozen=True)
class Options:
    """What the user can choose.

    Attributes:
        out: The folder to write; files in it are never read as input.
        images: The folder to search for images. Default: the folder of the input.
        classes: The plain `classes` section of `--config`. Default: the classes of the input.
        unlabeled: The class of the pixels without an object, or "ignore". Default: as the format says.
        ignored_colors: Colors of pixels to ignore.
    """

    out: Path
    images: Path | None = None
    classes: Mapping[str, Any] | None = None
    unlabeled: str | None = None
    ignored_colors: tuple[RGB, ...] = ()


@dataclass(frozen=True)
class Item:
    """An image to convert.

    Attributes:
        name: Its relative path in the split's folders, without extension, with `/` between folders.
        split: "train", "val" or "test"; empty for a mask to convert alone.
        image: The image file; None for a mask to convert alone.
        draw: Returns the H,W mask values, and adds to the counts that it is given.
        annotation: The file that the mask comes from.
    """

    name: str
    split: str
    image: Path | None
    draw: Callable[[Counter[str]], np.ndarray]
    annotation: Path


@dataclass(frozen=True)
class Conversion:
    """Everything that a reader finds in the input.

    Attributes:
        items: The images to convert.
        classes: The `classes` section of the config.
        faults: Images that can't be converted, and why.
        without_label: The categories whose pixels are ignored, because no label has their name.
        skipped: How many images of the input are skipped, by reason.
        palette: The color of each mask value. Default: those of the classes.
    """

    items: list[Item]
    classes: dict[str, Any]
    faults: list[DataError] = field(default_factory=list)
    without_label: tuple[str, ...] = ()
    skipped: Counter[str] = field(default_factory=Counter)
    palette: Mapping[int, RGB] | None = None


def load_json(path: Path) -> Any:
    """Read a JSON file.

    Args:
        path: The file.

    Returns:
        Its document.

    Raises:
        DataError: When it is missing or isn't JSON; the message has line and column.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; correct the path, or add the file.") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        where = f"line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise DataError(f"{path} is not valid JSON ({where}); it may be cut off. Export or copy it again.") from None


def get(document: Any, key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """Look up a key of a JSON object.

    Args:
        document: The object.
        key: The key.
        kind: The type that its value must have.
        where: What to call the object in the message.

    Returns:
        The value.

    Raises:
        DataError: When the key is missing or its value has another type.
    """
    value = document.get(key) if isinstance(document, Mapping) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        words = {dict: "an object", list: "a list", str: "a text", int: "a whole number", float: "a number"}
        expected = " or ".join(words[each] for each in kinds)
        raise DataError(f"{where}: expected {expected} at '{key}', found {_short(value)}; correct the file.")
    return value


def size_of(document: Any, height: str, width: str, where: str) -> tuple[int, int]:
    """Look up height and width in a JSON object.

    Args:
        document: The object.
        height: The key of the height.
        width: The key of the width.
        where: What to call the object in the message.

    Returns:
        (H, W) in px.

    Raises:
        DataError: When one is missing or isn't a whole number from 1 to 65535.
    """
    size = get(document, height, int, where), get(document, width, int, where)
    if not all(1 <= side <= 65535 for side in size):
        raise DataError(f"{where}: the size {size[0]}x{size[1]} px (HxW) is not one of an image; correct the file.")
    return size


def split_of(path: Path | str) -> str | None:
    """Find the split that a path names.

    Args:
        path: A relative path, such as "annotations/instances_train2017.json".

    Returns:
        "train", "val" or "test" by the last part with such a word; None if no part has one.
    """
    for part in reversed(PurePosixPath(path).parts):
        if match := _SPLIT_WORDS.search(part.lower()):
            return ("train", "val", "test")[(match.lastindex or 1) - 1]
    return None


def output_name(file_name: str, split: str) -> str:
    """Turn the name of an image in an annotation file into its name in the output.

    Args:
        file_name: A path, also one of Windows, absolute or with "..".
        split: The split of the image; a first folder of that name, such as "train2017", is left out.

    Returns:
        A relative path without extension.
    """
    path = PurePosixPath(file_name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or path.parts[0].endswith(":"):
        path = PurePosixPath(path.name)
    if len(path.parts) > 1 and split_of(path.parts[0]) == split:
        path = PurePosixPath(*path.parts[1:])
    return str(path.with_suffix(""))


def remapping(path: Path, table: Mapping[int, int]) -> Callable[[Counter[str]], np.ndarray]:
    """Make the `draw` of an item whose mask is a file with other values.

    Args:
        path: A mask with one channel.
        table: The new value of each value.

    Returns:
        A function that returns the H,W int32 mask values, and raises DataError when the mask can't be read or has a
        value that `table` lacks.
    """

    def draw(counts: Counter[str]) -> np.ndarray:
        mask = read_mask(path)
        values, inverse = np.unique(mask, return_inverse=True)
        unknown = [value for value in values.tolist() if value not in table]
        if unknown:
            advice = "Check that these are label masks of this format and version."
            raise FileError(
                f"{path} has values that belong to no class of the data set: {shorten(unknown, 5)}. {advice}",
                path,
                many=f"{{count}} masks have values that belong to no class of the data set: {{files}}. {advice}",
                detail=shorten(unknown, 2),
            )
        new = np.array([table[value] for value in values.tolist()], dtype=np.int32)
        return new[inverse].reshape(mask.shape)

    return draw


def _short(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
