"""Writing a converted data set: masks, images, and a record with which a stopped conversion goes on."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from seghiero_core.atomic import replacing
from seghiero_core.config.readers import SPLITS
from seghiero_core.data.converters.conversion import Conversion, Item
from seghiero_core.data.converters.pairs import fit_to_image, place_image
from seghiero_core.data.converters.record import Record, open_record
from seghiero_core.data.faults import report_faults
from seghiero_core.errors import DataError, UsageError
from seghiero_core.hierarchy.tree import Hierarchy

VAL = 0.2
"""The share of the images to validate with, where the input has no such split."""


@dataclass(frozen=True)
class Converted:
    """What a conversion wrote.

    Attributes:
        classes: The `classes` section of the config.
        splits: The number of images of each split; of masks converted alone under "".
        written: How many images this run converted; earlier ones did the others.
        size: The most frequent (H, W) of the images, px.
        images: How many images are "linked" and how many "copied".
        ignored: The share of pixels to ignore, 0..1.
        counts: What was drawn, such as objects and crowd regions.
        skipped: How many images of the input were skipped, by reason.
        without_label: The categories whose pixels are ignored, because no label has their name.
    """

    classes: dict[str, Any]
    splits: dict[str, int]
    written: int
    size: tuple[int, int]
    images: Counter[str]
    ignored: float
    counts: Counter[str]
    skipped: Counter[str]
    without_label: tuple[str, ...]


def write_conversion(
    conversion: Conversion,
    out: Path,
    choices: dict[str, Any],
    *,
    val: float | None = None,
    copy: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Converted:
    """Write the masks and images of a conversion below `out`, as SPLIT/masks and SPLIT/images.

    Images are hard links to the originals, or copies. Files that exist are kept. All images are tried before a fault
    is raised, and a repeated call does only what is missing.

    Args:
        conversion: What the reader of the format found.
        out: A new or empty folder, or that of a conversion with the same choices.
        choices: What the masks depend on, as plain values. A conversion goes on only with the same.
        val: The share of images to validate with, 0..1, where the input lacks a split. Default: `VAL`.
        copy: Copy images even where hard links are possible.
        on_progress: Called with (images done, number of images).

    Returns:
        What was written, now and by earlier calls.

    Raises:
        UsageError: When `out` holds other files, or `val` is set for an input with splits.
        DataError: When images can't be converted, or are too few.
    """
    if conversion.faults:
        total = len(conversion.items) + len(conversion.faults)
        raise DataError(
            f"{len(conversion.faults)} of {total} images can't be converted, nothing was written:\n"
            f"{report_faults(conversion.faults)}"
        )
    palette, ignore = _palette(conversion)
    items, divided = conversion.items, _lacks_split(conversion.items)
    if val is not None and not divided:
        raise UsageError("--val: the input has images for train and for val already; leave --val out.")
    if divided:
        items = _divide(items, VAL if val is None else val)
        choices = choices | {"val": val, "names": _digest(sorted(item.name for item in items))}
    _check_names(items)
    record = open_record(out, choices | {"classes": conversion.classes})

    def convert(item: Item) -> dict[str, Any] | DataError:
        try:
            return _convert(item, out, record, palette, ignore, copy=copy)
        except DataError as error:
            return error

    faults: list[DataError] = []
    written = 0
    with record.appending() as append, ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for done, (item, entry) in enumerate(zip(items, pool.map(convert, items), strict=True), start=1):
                if isinstance(entry, DataError):
                    faults.append(entry)
                elif record.entry(item) is None:
                    append(item, entry)
                    written += 1
                if on_progress:
                    on_progress(done, len(items))
        except BaseException:  # also Ctrl-C: without this, leaving the pool would wait for all images
            pool.shutdown(cancel_futures=True)
            raise
    if faults:
        raise DataError(
            f"{len(faults)} of {len(items)} masks were not converted; the others are in {out}. Correct the files "
            "and repeat the command, which does the rest, or choose a new folder for other options or classes:\n"
            f"{report_faults(faults)}"
        )
    return _summarize(conversion, items, record, written)


def _convert(item: Item, out: Path, record: Record, palette: np.ndarray, ignore: int, *, copy: bool) -> dict[str, Any]:
    """Write the mask and the image of an item, unless the record says that both are done; returns its entry."""
    mask_path = out / item.split / "masks" / f"{item.name}.png" if item.split else out / f"{item.name}.png"
    image_path = out / item.split / "images" / f"{item.name}{item.image.suffix}" if item.image else None
    done = record.entry(item)
    if done and mask_path.exists() and (image_path is None or image_path.exists()):
        return done
    counts: Counter[str] = Counter()
    mask = item.draw(counts)
    if item.image:
        mask = fit_to_image(mask, item.image, item.annotation, counts)
    if not mask_path.exists():
        _write_mask(mask, mask_path, palette)
    return {
        "image": place_image(item.image, image_path, copy=copy) if item.image and image_path else "",
        "size": list(mask.shape),
        "ignored": int((mask == ignore).sum()),
        "counts": dict(counts),
    }


def _write_mask(mask: np.ndarray, path: Path, palette: np.ndarray) -> None:
    """Save mask values as 8-bit PNG with the colors of their classes as palette, or as 16-bit PNG."""
    fits_8_bits = len(palette) <= 256
    image = Image.fromarray(mask.astype(np.uint8 if fits_8_bits else np.uint16))
    if fits_8_bits:
        image.putpalette(palette.tobytes())
    with replacing(path) as temporary:
        image.save(temporary, format="PNG")


def _palette(conversion: Conversion) -> tuple[np.ndarray, int]:
    """V,3 uint8 colors of the mask values up to the largest, black for values without one color; the ignore value."""
    colors, ignore = conversion.palette, conversion.classes.get("ignore")
    if colors is None:
        hierarchy = Hierarchy.from_config(conversion.classes)
        nodes = {value: label for value, label in hierarchy.values.items() if label < len(hierarchy)}
        colors, ignore = {value: hierarchy.colors[node] for value, node in nodes.items()}, hierarchy.ignore
    palette = np.zeros((max(*colors, ignore) + 1, 3), dtype=np.uint8)
    for value, color in colors.items():
        palette[value] = color
    return palette, ignore


def _lacks_split(items: Sequence[Item]) -> bool:
    """Whether there are no images for train or for val; masks that are converted alone need neither."""
    splits = {item.split for item in items}
    return splits != {""} and not splits >= {"train", "val"}


def _divide(items: Sequence[Item], val: float) -> list[Item]:
    """Divide the images that are not for test between train and val, by a hash of their names."""
    divided = [item for item in items if item.split != "test"]
    if len(divided) < 2:
        raise DataError(f"found {len(divided)} images for train and val; at least 2 are needed.")
    ranked = sorted(divided, key=lambda item: (_digest([item.name]), item.name))
    count = min(max(1, round(val * len(divided))), len(divided) - 1)
    chosen = set(map(id, ranked[:count]))
    return [
        item if item.split == "test" else replace(item, split="val" if id(item) in chosen else "train")
        for item in items
    ]


def _digest(names: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogatepass")).hexdigest()


def _check_names(items: Sequence[Item]) -> None:
    """Refuse two items that would have one mask file."""
    first: dict[tuple[str, str], Item] = {}
    for item in items:
        other = first.setdefault((item.split, item.name), item)
        if other is not item:
            one, two = (each.image or each.annotation for each in (other, item))
            where = f"{item.split}/masks/{item.name}.png" if item.split else f"{item.name}.png"
            raise DataError(f"{one} and {two} would both get the mask {where}; rename one of them.")


def _summarize(conversion: Conversion, items: Sequence[Item], record: Record, written: int) -> Converted:
    entries = [entry for item in items if (entry := record.entry(item))]
    counts: Counter[str] = Counter()
    for entry in entries:
        counts.update(entry["counts"])
    pixels = sum(entry["size"][0] * entry["size"][1] for entry in entries)
    (size, _), *_ = Counter(tuple(entry["size"]) for entry in entries).most_common(1)
    splits = Counter(item.split for item in items)
    return Converted(
        classes=conversion.classes,
        splits={split: splits[split] for split in (*SPLITS, "") if splits[split]},
        written=written,
        size=size,
        images=Counter(entry["image"] for entry in entries if entry["image"]),
        ignored=sum(entry["ignored"] for entry in entries) / pixels,
        counts=counts,
        skipped=conversion.skipped,
        without_label=conversion.without_label,
    )
