"""Converting masks painted in class colors to masks of label values, which the loaders read."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from seghiero_core.atomic import replacing
from seghiero_core.data.faults import FileError, report_faults
from seghiero_core.data.images import open_image
from seghiero_core.data.orientation import turn_upright
from seghiero_core.data.samples import MASK_EXTENSIONS, files_below
from seghiero_core.errors import DataError, UsageError, shorten

RGB = tuple[int, int, int]
"""A color, each channel 0..255."""

_NO_VALUE = -1
_COLORS_SHOWN = 5


def convert_masks(
    source: Path,
    out: Path,
    values: Mapping[RGB, int],
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write every color mask below `source` as a PNG of label values at the same place below `out`.

    Masks are rotated upright by their EXIF orientation. The files are 8-bit PNGs with the colors as their palette, or
    16-bit PNGs where a value is above 255.

    Args:
        source: A folder of color masks.
        out: A new or empty folder outside `source`.
        values: The label value of each color, as `values_of_colors` returns them.
        on_progress: Called with (masks done, number of masks).

    Returns:
        The files written.

    Raises:
        UsageError: When `source` has no mask, two masks would be written to one file, or `out` is inside `source` or
            not empty.
        DataError: When masks have other colors or can't be read; the others are converted first.
    """
    targets = _targets(source, out)
    table = np.full(1 << 24, _NO_VALUE, dtype=np.int32)
    palette = np.zeros((max(values.values()) + 1, 3), dtype=np.uint8)
    for (red, green, blue), value in values.items():
        table[red << 16 | green << 8 | blue] = value
        palette[value] = red, green, blue

    def convert(mask: Path) -> DataError | None:
        try:
            _write(_label_values(mask, table), targets[mask], palette)
        except DataError as error:
            return error
        return None

    faults = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, fault in enumerate(pool.map(convert, targets), start=1):
            if fault:
                faults.append(fault)
            if on_progress:
                on_progress(done, len(targets))
    if faults:
        raise DataError(f"{len(faults)} of {len(targets)} masks were not converted:\n{report_faults(faults)}")
    return list(targets.values())


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


def _targets(source: Path, out: Path) -> dict[Path, Path]:
    """The file to write for each mask below `source`."""
    if not source.is_dir():
        raise UsageError(f"{source} is not a folder; give the folder of the color masks.")
    if out.resolve().is_relative_to(source.resolve()):
        raise UsageError(f"{out} is inside {source}; give a folder outside it.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is not an empty folder; give a new folder, or empty it.")
    masks = [path for path in files_below(source) if path.suffix.lower() in MASK_EXTENSIONS]
    if not masks:
        raise UsageError(f"{source} has no mask ({', '.join(sorted(MASK_EXTENSIONS))}).")
    mask_of: dict[Path, Path] = {}
    for mask in masks:
        target = (out / mask.relative_to(source)).with_suffix(".png")
        if target in mask_of:
            raise UsageError(f"{mask_of[target]} and {mask} would both be written to {target}; rename one of them.")
        mask_of[target] = mask
    return {mask: target for target, mask in mask_of.items()}


def _label_values(mask: Path, table: np.ndarray) -> np.ndarray:
    """H,W int32 label values of a color mask; DataError where it can't be read or has a color without a value."""
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
        advice = "Add them to classes.colors, or pass them to --ignore."
        raise FileError(
            f"{mask} has colors that belong to no class: {shorten(listed, _COLORS_SHOWN)}. {advice}",
            mask,
            many=f"{{count}} masks have colors that belong to no class: {{files}}. {advice}",
            detail=shorten(listed, 2),
        )
    return values


def _write(values: np.ndarray, path: Path, palette: np.ndarray) -> None:
    fits_8_bits = len(palette) <= 256
    image = Image.fromarray(values.astype(np.uint8 if fits_8_bits else np.uint16))
    if fits_8_bits:
        image.putpalette(palette.tobytes())
    with replacing(path) as temporary:
        image.save(temporary, format="PNG")
