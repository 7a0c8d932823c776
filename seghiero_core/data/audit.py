"""Checking a data set before the first step: all its faults are reported in one message."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np

from seghiero_core.data.images import (
    check_mask_mode,
    exif_swaps_sides,
    open_image,
    read_mask,
    unknown_labels_error,
    unknown_values,
    upright_size,
)
from seghiero_core.data.samples import Sample
from seghiero_core.errors import DataError, shorten
from seghiero_core.hierarchy.tree import Hierarchy

_FAULTS_SHOWN = 10
DECODED_BY_FAST_CHECK = 64
PIXELS_PER_CHUNK = 1 << 20  # counted at a time, which bounds the memory for images of any size
_UINT16_VALUES = 1 << 16


@dataclass(frozen=True)
class Audit:
    """What the check of one split found.

    Attributes:
        samples: Number of pairs.
        sizes: Number of images of each size (H, W) in px.
        decoded: Number of pairs that were decoded and counted; fewer than `samples` after a fast check.
        pixels: N int64, pixels of the decoded masks that are labeled with each node.
        ignored: Ignored pixels of the decoded masks.
    """

    samples: int
    sizes: dict[tuple[int, int], int]
    decoded: int
    pixels: np.ndarray
    ignored: int


@dataclass(frozen=True)
class _Inspection:
    """What was found in one pair: its size (H, W), and the pixels of each mask value, None where not decoded."""

    size: tuple[int, int]
    pixels: dict[int, int] | None


def audit(
    samples: Sequence[Sample],
    hierarchy: Hierarchy,
    *,
    check: Literal["full", "fast"] = "full",
    on_progress: Callable[[int, int], None] | None = None,
) -> Audit:
    """Check that every image decodes, and that its mask has one channel, the image's size and known labels.

    Threads do the work: Pillow releases the interpreter's lock while it decodes.

    Args:
        samples: The pairs of one split.
        hierarchy: The class tree.
        check: "full" decodes everything; "fast" reads all headers and decodes 64 evenly spaced pairs (the loaders check
            the others during training).
        on_progress: Called with (pairs done, number of pairs).

    Returns:
        The sizes and pixel counts of the split.

    Raises:
        DataError: When there are faults; it lists the first ten, in the order of `samples`, and the number of the rest.
    """
    step = 1 if check == "full" else max(1, len(samples) // DECODED_BY_FAST_CHECK)

    def inspect(position: int) -> _Inspection | DataError:
        try:
            return _inspect(samples[position], hierarchy, decode=position % step == 0)
        except DataError as error:
            return error

    sizes: Counter[tuple[int, int]] = Counter()
    pixels: Counter[int] = Counter()  # by mask value
    decoded, faults = 0, []
    with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
        for done, result in enumerate(pool.map(inspect, range(len(samples))), start=1):
            if isinstance(result, DataError):
                faults.append(result)
            else:
                sizes[result.size] += 1
                if result.pixels is not None:
                    pixels.update(result.pixels)
                    decoded += 1
            if on_progress:
                on_progress(done, len(samples))
    if faults:
        raise DataError(shorten(faults, _FAULTS_SHOWN, separator="\n"))
    by_node = np.zeros(len(hierarchy), dtype=np.int64)
    for value, node in hierarchy.values.items():
        by_node[node] = pixels[value]
    return Audit(len(samples), dict(sizes), decoded, by_node, pixels[hierarchy.ignore])


def _inspect(sample: Sample, hierarchy: Hierarchy, *, decode: bool) -> _Inspection:
    """Check one pair, and raise DataError for its first fault."""
    with open_image(sample.image) as image:
        size, swapped = upright_size(image), exif_swaps_sides(image)
        if decode:
            # Decoding a JPEG at an eighth of its size still reads every byte, so it finds a truncated file at a third
            # of the cost.
            image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
    with open_image(sample.mask) as mask:
        check_mask_mode(mask, sample.mask)
        mask_size = (mask.height, mask.width)
    if mask_size != size:
        if swapped and mask_size == size[::-1]:
            hint = "The image's EXIF orientation rotates it by a quarter turn, but its mask is not rotated: rotate it."
        else:
            hint = "Export the mask at the image's size, without interpolation."
        raise DataError(
            f"{sample.mask} is {mask_size[0]}x{mask_size[1]} px (HxW), its image {sample.image} is "
            f"{size[0]}x{size[1]}. {hint}"
        )
    if not decode:
        return _Inspection(size, None)
    pixels = _count_values(read_mask(sample.mask))
    if unknown := unknown_values(pixels, hierarchy):
        raise unknown_labels_error(sample.mask, unknown)
    return _Inspection(size, pixels)


def _count_values(mask: np.ndarray) -> dict[int, int]:
    """The number of pixels of each value that occurs in a mask of any integer dtype."""
    counts = np.zeros(_UINT16_VALUES, dtype=np.int64)
    others: Counter[int] = Counter()
    pixels = mask.ravel()
    for start in range(0, len(pixels), PIXELS_PER_CHUNK):
        chunk = pixels[start : start + PIXELS_PER_CHUNK]
        if chunk.dtype.itemsize > 2:
            is_uint16 = (chunk >= 0) & (chunk < _UINT16_VALUES)
            others.update(chunk[~is_uint16].tolist())
            chunk = chunk[is_uint16]
        counts += np.bincount(chunk, minlength=_UINT16_VALUES)
    found = np.flatnonzero(counts)
    return dict(zip(found.tolist(), counts[found].tolist(), strict=True)) | dict(others)
