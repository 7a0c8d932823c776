"""Every fault of a data set in one message, before the first step."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np

from seghiero_core.data.images import (
    NO_LABEL,
    check_mask_mode,
    node_table,
    opened,
    read_mask,
    to_nodes,
    turned_on_its_side,
    upright_size,
)
from seghiero_core.data.samples import Sample
from seghiero_core.errors import DataError, shorten
from seghiero_core.hierarchy.tree import IGNORE_INDEX, Hierarchy

FAULTS_SHOWN = 10
DECODED_WHEN_FAST = 64
CHUNK = 1 << 20  # pixels counted at a time, which bounds memory whatever the image's size


@dataclass(frozen=True)
class Audit:
    """What was seen of a split.

    Attributes:
        samples: the number of pairs.
        sizes: how many images have each size (H, W), px.
        decoded: the number of pairs that were decoded and counted; less than `samples` after a fast check.
        pixels: N int64, pixels of the decoded masks that are labelled with each node.
        ignored: pixels of the decoded masks that are ignored.
    """

    samples: int
    sizes: dict[tuple[int, int], int]
    decoded: int
    pixels: np.ndarray
    ignored: int


def audit(
    samples: Sequence[Sample],
    hierarchy: Hierarchy,
    *,
    check: Literal["full", "fast"] = "full",
    on_progress: Callable[[int, int], None] | None = None,
) -> Audit:
    """Check that each image decodes and that its mask has one channel, the image's size, and no value but labels.

    "full" decodes everything; "fast" reads all headers and decodes 64 pairs spread evenly (the loaders check the
    rest as it comes). Threads do the work: Pillow frees the interpreter's lock while it decodes.

    Args:
        on_progress: called with (pairs done, pairs in all).

    Raises DataError with the first ten faults, in the order of `samples`, and the number of all.
    """
    table = node_table(hierarchy)
    step = 1 if check == "full" else max(1, len(samples) // DECODED_WHEN_FAST)

    def inspect(position: int):
        try:
            return _inspect(samples[position], table, len(hierarchy), decode=position % step == 0)
        except DataError as error:
            return str(error)

    sizes: Counter[tuple[int, int]] = Counter()
    pixels, ignored, decoded, faults = np.zeros(len(hierarchy), dtype=np.int64), 0, 0, []
    with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
        for done, result in enumerate(pool.map(inspect, range(len(samples))), start=1):
            if isinstance(result, str):
                faults.append(result)
            else:
                size, counts = result
                sizes[size] += 1
                if counts is not None:
                    pixels += counts[:-1]
                    ignored += int(counts[-1])
                    decoded += 1
            if on_progress:
                on_progress(done, len(samples))
    if faults:
        raise DataError(shorten(faults, FAULTS_SHOWN, separator="\n"))
    return Audit(len(samples), dict(sizes), decoded, pixels, ignored)


def _inspect(sample: Sample, table: np.ndarray, num_nodes: int, *, decode: bool):
    """((H, W), N+1 pixel counts with the ignored last, or None where not decoded); raises DataError for a fault."""
    with opened(sample.image) as image:
        size, turned = upright_size(image), turned_on_its_side(image)
        if decode:
            # A JPEG decoded at an eighth still reads every byte, so it shows truncation at a third of the cost.
            image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
    with opened(sample.mask) as mask:
        check_mask_mode(mask, sample.mask)
        mask_size = (mask.height, mask.width)
    if mask_size != size:
        hint = (
            " The image's EXIF orientation turns it on its side, its mask fits the unturned picture: turn the mask."
            if turned and mask_size == size[::-1]
            else " Export the mask at the image's size, without interpolation."
        )
        raise DataError(
            f"{sample.mask} is {mask_size[0]}x{mask_size[1]} px (HxW), its image {sample.image} is "
            f"{size[0]}x{size[1]}.{hint}"
        )
    return size, _count(sample, table, num_nodes) if decode else None


def _count(sample: Sample, table: np.ndarray, num_nodes: int) -> np.ndarray:
    values = read_mask(sample.mask).ravel()
    counts, strangers = np.zeros(num_nodes + 1, dtype=np.int64), Counter()
    for start in range(0, len(values), CHUNK):
        chunk = values[start : start + CHUNK]
        nodes = to_nodes(chunk, table)
        strange = nodes == NO_LABEL
        if strange.any():
            strangers.update(dict(zip(*np.unique(chunk[strange], return_counts=True), strict=True)))
            nodes = nodes[~strange]
        nodes[nodes == IGNORE_INDEX] = num_nodes
        counts += np.bincount(nodes, minlength=num_nodes + 1)
    if strangers:
        raise strange_values(sample, strangers)
    return counts


def strange_values(sample: Sample, strangers: Counter) -> DataError:
    """The error for a mask with values that are no label; `strangers` counts the pixels of each."""
    listed = shorten([f"{int(value)} ({count} px)" for value, count in strangers.most_common()], 5)
    return DataError(
        f"{sample.mask} holds values that are no label: {listed}. Add them to classes.labels, or set "
        "classes.ignore to a value that should count nowhere."
    )
