"""Masks painted in colours to masks of label values, which is what the loaders read."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from seghiero_core.atomic import replacing
from seghiero_core.data.images import opened
from seghiero_core.data.samples import MASK_EXTENSIONS, files_below
from seghiero_core.errors import DataError, UsageError, shorten

Color = tuple[int, int, int]
UNKNOWN = -1
SHOWN = 10


def convert_masks(
    source: Path,
    out: Path,
    values: Mapping[Color, int],
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write every colour mask below `source` as a PNG of label values at the same place below `out`.

    Args:
        values: the label value of each (R, G, B). Files are 8-bit PNGs with these colours as palette, or 16-bit ones
            where a value is above 255.
        on_progress: called with (masks done, masks in all).

    Returns the files written. Raises UsageError where `source` holds no mask or two would be written to one file, and
    where `out` is within `source` or holds files; DataError, once all others are written, with the masks that have
    other colours or can't be read.
    """
    targets = _targets(source, out)
    table = np.full(1 << 24, UNKNOWN, dtype=np.int32)
    palette = np.zeros((max(values.values()) + 1, 3), dtype=np.uint8)
    for (red, green, blue), value in values.items():
        table[red << 16 | green << 8 | blue] = value
        palette[value] = red, green, blue

    def convert(mask: Path) -> str | None:
        try:
            _write(_label_values(mask, table), targets[mask], palette)
        except DataError as error:
            return str(error)

    faults = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, fault in enumerate(pool.map(convert, targets), start=1):
            faults += [fault] if fault else []
            if on_progress:
                on_progress(done, len(targets))
    if faults:
        listed = shorten(faults, SHOWN, separator="\n")
        raise DataError(f"{len(faults)} of {len(targets)} masks were not converted:\n{listed}")
    return list(targets.values())


def _targets(source: Path, out: Path) -> dict[Path, Path]:
    """Where each mask below `source` goes."""
    if not source.is_dir():
        raise UsageError(f"{source} is no folder; name the one that holds the colour masks.")
    if out.resolve().is_relative_to(source.resolve()):
        raise UsageError(f"{out} is within {source}; name a folder outside of it.")
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} holds files already; name a new folder, or empty it.")
    found = [path for path in files_below(source) if path.suffix.lower() in MASK_EXTENSIONS]
    if not found:
        raise UsageError(f"{source} holds no mask ({', '.join(sorted(MASK_EXTENSIONS))}).")
    sources: dict[Path, Path] = {}
    for path in found:
        target = (out / path.relative_to(source)).with_suffix(".png")
        if sources.setdefault(target, path) != path:
            raise UsageError(f"{sources[target]} and {path} would both be written to {target}; rename one of them.")
    return {path: target for target, path in sources.items()}


def _label_values(mask: Path, table: np.ndarray) -> np.ndarray:
    """H,W int32. Raises DataError where the mask can't be read or holds a colour that has no value."""
    with opened(mask) as image:
        rgb = np.array(image.convert("RGB"), dtype=np.int32)
    codes = rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]
    values = table[codes]
    strange = values == UNKNOWN
    if strange.any():
        colors, counts = np.unique(codes[strange], return_counts=True)
        by_count = sorted(zip(counts.tolist(), colors.tolist(), strict=True), reverse=True)
        listed = [f"{code >> 16},{code >> 8 & 255},{code & 255} ({count} px)" for count, code in by_count]
        raise DataError(
            f"{mask} has colours of no class: {shorten(listed, 5)}. Add them to classes.colors, or --ignore them."
        )
    return values


def _write(values: np.ndarray, path: Path, palette: np.ndarray) -> None:
    image = Image.fromarray(values.astype(np.uint8 if len(palette) <= 256 else np.uint16))
    if len(palette) <= 256:
        image.putpalette(palette.tobytes())
    with replacing(path) as temporary:
        image.save(temporary, format="PNG")


def values_of_colors(
    labels: Mapping[int, str], colors: Mapping[str, Sequence[int]], ignored: Sequence[Color], ignore: int
) -> dict[Color, int]:
    """The label value of each colour of `classes.colors`, and `ignore` for the `ignored` ones.

    Raises UsageError where labels have no colours, or two have the same.
    """
    values: dict[Color, int] = {}
    for color, value in [(tuple(colors[name]), value) for value, name in labels.items() if name in colors] + [
        (color, ignore) for color in ignored
    ]:
        if values.setdefault(color, value) != value:
            raise UsageError(f"the colour {','.join(map(str, color))} stands for two values: {values[color]}, {value}.")
    if not values:
        raise UsageError(
            "classes.colors gives no label a colour; write the masks' colours there: {sky: [70, 130, 180]}."
        )
    return values
