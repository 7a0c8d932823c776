"""Checking a data set before the first step: all its faults are reported in one message."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from seghiero_core.data.faults import name_files, report_faults
from seghiero_core.data.hints import look_swapped, unknown_values_hint
from seghiero_core.data.images import (
    check_image_mode,
    check_mask_mode,
    check_same_size,
    list_values,
    open_image,
    read_mask,
    unknown_values,
)
from seghiero_core.data.orientation import QUARTER_TURNS, exif_orientation, upright_size
from seghiero_core.data.samples import Sample
from seghiero_core.errors import DataError
from seghiero_core.hierarchy.tree import Hierarchy

DECODED_BY_FAST_CHECK = 64
PIXELS_PER_CHUNK = 1 << 20  # counted at a time, which bounds the memory for images of any size
_UINT16_VALUES = 1 << 16


@dataclass(frozen=True)
class Audit:
    """What the check of one split found.

    Attributes:
        samples: The pairs, source by source.
        sizes: Number of images of each size (H, W) in px.
        decoded: Number of pairs that were decoded and counted; fewer than `samples` after a fast check.
        pixels: N+S int64, pixels of the decoded masks with each label: N nodes, then S sets.
        ignored: Ignored pixels of the decoded masks.
        values: Pixels of the decoded masks with each mask value; empty where sources have values of their own.
        turned: Images whose EXIF orientation differs from that of their masks, where the sizes fit either way.
        peaks: The greatest value of each decoded 16-bit image, of which the network sees the high byte.
        sources: The same for each source that has samples, by its position in `dataset.sources`.
    """

    samples: tuple[Sample, ...]
    sizes: dict[tuple[int, int], int]
    decoded: int
    pixels: np.ndarray
    ignored: int
    values: Mapping[int, int] = field(default_factory=dict)
    turned: tuple[Path, ...] = ()
    peaks: Mapping[Path, int] = field(default_factory=dict)
    sources: Mapping[int, Audit] = field(default_factory=dict)

    def drawn_pixels(self, weights: Sequence[float]) -> np.ndarray:
        """Count the pixels of each label as often as training draws them.

        Args:
            weights: The weight of each of `dataset.sources`; empty without sources.

        Returns:
            A number of pixels for each label, of shape (L): N nodes, then S sets.
        """
        if not self.sources:
            return self.pixels
        return sum(weights[source] * found.pixels for source, found in self.sources.items())


@dataclass(frozen=True)
class _Inspection:
    """What was found in one pair; see `Audit`. `pixels` by mask value; None where the pair was not decoded."""

    size: tuple[int, int]
    turned: bool
    peak: int | None = None
    pixels: dict[int, int] | None = None


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
        check: "full" decodes everything; "fast" reads all headers and decodes 64 evenly spaced pairs of each source
            (the loaders check the others during training).
        on_progress: Called with (pairs done, number of pairs).

    Returns:
        The sizes and pixel counts of the split.

    Raises:
        DataError: When there are faults, with a line for each kind.
    """
    parts: dict[int | None, _Part] = {}
    for sample in samples:
        parts.setdefault(sample.source, _Part(hierarchy.of_source(sample.source))).samples.append(sample)
    jobs = [(part, sample, decode) for part in parts.values() for sample, decode in part.decodings(check)]

    def inspect(job: tuple[_Part, Sample, bool]) -> _Inspection | DataError:
        try:
            return _inspect(job[1], decode=job[2])
        except DataError as error:
            return error

    with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
        for done, ((part, sample, _), result) in enumerate(zip(jobs, pool.map(inspect, jobs), strict=True), start=1):
            part.add(sample, result)
            if on_progress:
                on_progress(done, len(jobs))
    if faults := [fault for part in parts.values() for fault in part.all_faults()]:
        raise DataError(report_faults(faults))
    audits = {source: part.audit() for source, part in parts.items()}
    return audits[None] if None in audits else _total(audits)


class _Part:
    """The samples of one source, or of a data set without sources, and what was found in them so far."""

    def __init__(self, hierarchy: Hierarchy) -> None:
        self.hierarchy = hierarchy
        self.samples: list[Sample] = []
        self.sizes: Counter[tuple[int, int]] = Counter()
        self.values: Counter[int] = Counter()
        self.peaks: dict[Path, int] = {}
        self.decoded = 0
        self.faults: list[DataError] = []
        self.turned: list[Path] = []
        self.mislabeled: list[Path] = []

    def decodings(self, check: str) -> Iterator[tuple[Sample, bool]]:
        """Yield the samples, and whether to decode them."""
        step = 1 if check == "full" else max(1, len(self.samples) // DECODED_BY_FAST_CHECK)
        for position, sample in enumerate(self.samples):
            yield sample, position % step == 0

    def add(self, sample: Sample, result: _Inspection | DataError) -> None:
        """Count what was found in one pair."""
        if isinstance(result, DataError):
            self.faults.append(result)
            return
        self.sizes[result.size] += 1
        self.turned += [sample.image] * result.turned
        if result.peak is not None:
            self.peaks[sample.image] = result.peak
        if result.pixels is not None:
            self.decoded += 1
            self.values.update(result.pixels)
            if unknown_values(result.pixels, self.hierarchy):
                self.mislabeled.append(sample.mask)

    def all_faults(self) -> list[DataError]:
        """The faults of the files, and one for all masks with unknown values; or that images and masks are swapped."""
        faults = list(self.faults)
        if self.mislabeled:
            faults.append(_unknown_values_error(self.mislabeled, self.values, self.hierarchy))
        images, masks = [sample.image for sample in self.samples], [sample.mask for sample in self.samples]
        if faults and look_swapped(images, masks, {*self.hierarchy.values, self.hierarchy.ignore}):
            text = f"{images[0]} and the other images look like masks, {masks[0]} and the other masks like pictures. "
            return [DataError(f"{text}Swap the folders `images` and `masks` of the split.")]
        return faults

    def audit(self) -> Audit:
        """What was found in all pairs."""
        pixels = np.zeros(len(self.hierarchy.label_nodes), dtype=np.int64)
        for value, label in self.hierarchy.values.items():
            pixels[label] += self.values[value]
        return Audit(
            samples=tuple(self.samples),
            sizes=dict(self.sizes),
            decoded=self.decoded,
            pixels=pixels,
            ignored=self.values[self.hierarchy.ignore],
            values=dict(self.values),
            turned=tuple(self.turned),
            peaks=self.peaks,
        )


def _total(sources: Mapping[int, Audit]) -> Audit:
    """What was found in all sources together."""
    sizes: Counter[tuple[int, int]] = Counter()
    for found in sources.values():
        sizes.update(found.sizes)
    return Audit(
        samples=tuple(sample for found in sources.values() for sample in found.samples),
        sizes=dict(sizes),
        decoded=sum(found.decoded for found in sources.values()),
        pixels=sum(found.pixels for found in sources.values()),
        ignored=sum(found.ignored for found in sources.values()),
        turned=tuple(path for found in sources.values() for path in found.turned),
        peaks={path: peak for found in sources.values() for path, peak in found.peaks.items()},
        sources=sources,
    )


def _inspect(sample: Sample, *, decode: bool) -> _Inspection:
    """Check one pair, and raise DataError for its first fault."""
    with open_image(sample.image) as image:
        check_image_mode(image, sample.image)
        size, orientation, peak = upright_size(image), exif_orientation(image), None
        if decode:
            # Decoding a JPEG at an eighth of its size still reads every byte, so it finds a truncated file at a third
            # of the cost.
            image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
            peak = int(np.asarray(image).max()) if image.mode.startswith("I") else None
    with open_image(sample.mask) as mask:
        check_mask_mode(mask, sample.mask)
        mask_size, mask_orientation = upright_size(mask), exif_orientation(mask)
    differ = orientation != mask_orientation
    check_same_size(sample.image, size, sample.mask, mask_size, orientations_differ=differ)
    is_square = size[0] == size[1]
    turned = differ and (is_square or (orientation in QUARTER_TURNS) == (mask_orientation in QUARTER_TURNS))
    if not decode:
        return _Inspection(size, turned)
    return _Inspection(size, turned, peak, _count_values(read_mask(sample.mask)))


def _unknown_values_error(masks: Sequence[Path], found: Counter[int], hierarchy: Hierarchy) -> DataError:
    """The error for all masks with unknown values; `found` counts the pixels of each value in all decoded masks."""
    unknown = unknown_values(found, hierarchy)
    hint = unknown_values_hint(found, unknown, hierarchy)
    if len(masks) == 1:
        return DataError(f"{masks[0]} has values that are not labels: {list_values(unknown)}. {hint}")
    return DataError(
        f"{len(masks)} masks have values that are not labels: {list_values(unknown)}; {name_files(masks)}. {hint}"
    )


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
