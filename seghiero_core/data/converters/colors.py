"""Masks painted in the class colors of a config."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np

from seghiero_core.data.converters.conversion import Conversion, Item, Options, output_name, split_of
from seghiero_core.data.converters.image_files import ImageFolder, masks_below
from seghiero_core.data.converters.painted import color_table, read_painted, values_of_colors
from seghiero_core.errors import DataError, UsageError

_ADVICE = "Add them to classes.colors, or pass them to --ignore."


def read_colors(source: Path, options: Options) -> Conversion:
    """Find color masks below a folder.

    Args:
        source: The folder.
        options: What the user chose. With `images`, each mask gets its image, with the same name; without, the masks
            are converted alone.

    Returns:
        The masks, with the classes of `options`.

    Raises:
        UsageError: When classes, colors or masks are missing.
    """
    if options.classes is None:
        raise UsageError("colors needs the classes and their colors: add --config CFG.")
    classes = dict(options.classes)
    values = values_of_colors(classes["labels"], classes.get("colors") or {}, options.ignored_colors, classes["ignore"])
    if not source.is_dir():
        raise UsageError(f"{source} is not a folder; give the folder of the color masks.")
    images = ImageFolder(options.images, [options.out], option=True) if options.images else None
    table = color_table(values)
    items, faults = [], []
    for mask in masks_below(source, options.out):
        relative = mask.relative_to(source)
        name, split = relative.with_suffix("").as_posix(), ""
        try:
            image = images.find_stem(name, mask) if images else None
        except DataError as error:
            faults.append(error)
            continue
        if images:
            split = split_of(relative.parent) or "train"
            name = output_name(relative.as_posix(), split)
        items.append(Item(name, split, image, partial(_draw, mask, table), mask))
    palette = {value: color for color, value in reversed(values.items())}
    return Conversion(items, classes, faults, palette=palette)


def _draw(mask: Path, table: np.ndarray, counts: Counter[str]) -> np.ndarray:
    return read_painted(mask, table, _ADVICE)
