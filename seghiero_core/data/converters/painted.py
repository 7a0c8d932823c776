"""Masks painted in class colors: the label value of each color, and reading such a mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from seghiero_core.data.converters.conversion import RGB
from seghiero_core.data.faults import FileError
from seghiero_core.data.images import open_image
from seghiero_core.data.orientation import turn_upright
from seghiero_core.errors import UsageError, shorten

_NO_VALUE = -1
_COLORS_SHOWN = 5


def values_of_colors(
    labels: Mapping[int, str | Sequence[str]], colors: Mapping[str, Sequence[int]], ignored: Sequence[RGB], ignore: int
) -> dict[RGB, int]:
    """Look up the label value of each color of a config's classes.

    Args:
        labels: `classes.labels` or those of a source, names by label value. A list of names has no color.
        colors: `classes.colors`, RGB by name.
        ignored: More colors, for pixels to ignore.
        ignore: The value of ignored pixels.

    Returns:
        The label value of each color.

    Raises:
        UsageError: When no label has a color, or two values have the same one.
    """
    # Several mask values of a source may have one name: its color gets the first.
    value_of = {name: value for value, name in reversed(labels.items()) if isinstance(name, str) and name in colors}
    pairs = [(tuple(colors[name]), value) for name, value in value_of.items()]
    values: dict[RGB, int] = {}
    for color, value in [*pairs, *((color, ignore) for color in ignored)]:
        if values.setdefault(color, value) != value:
            shown = ",".join(map(str, color))
            raise UsageError(
                f"the color {shown} is used for two values, {values[color]} and {value}; correct classes.colors or "
                "--ignore."
            )
    if not values:
        raise UsageError(
            "classes.colors has no color of any label; add the colors of the masks: {sky: [70, 130, 180]}."
        )
    return values


def color_table(values: Mapping[RGB, int]) -> np.ndarray:
    """Arrange the label values of colors for `read_painted`.

    Args:
        values: The label value of each color.

    Returns:
        (N) int32 for the N = 2**24 colors: their label values, -1 for colors without one.
    """
    table = np.full(1 << 24, _NO_VALUE, dtype=np.int32)
    for (red, green, blue), value in values.items():
        table[red << 16 | green << 8 | blue] = value
    return table


def read_painted(mask: Path, table: np.ndarray, advice: str) -> np.ndarray:
    """Read a mask painted in class colors, rotated upright by its EXIF orientation.

    Args:
        mask: The file.
        table: (N) label values, as `color_table` returns them.
        advice: What to do about other colors, for the message.

    Returns:
        H,W int32 label values.

    Raises:
        DataError: When it can't be read, or has a color without a value.
    """
    with open_image(mask) as image:
        turn_upright(image)
        rgb = np.array(image.convert("RGB"), dtype=np.int32)
    codes = rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]
    values = table[codes]
    unknown = values == _NO_VALUE
    if unknown.any():
        colors, counts = np.unique(codes[unknown], return_counts=True)
        by_count = sorted(zip(counts.tolist(), colors.tolist(), strict=True), reverse=True)
        listed = [f"{code >> 16},{code >> 8 & 255},{code & 255} ({count} px)" for count, code in by_count]
        raise FileError(
            f"{mask} has colors that belong to no class: {shorten(listed, _COLORS_SHOWN)}. {advice}",
            mask,
            many=f"{{count}} masks have colors that belong to no class: {{files}}. {advice}",
            detail=shorten(listed, 2),
        )
    return values
