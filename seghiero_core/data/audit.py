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

from seghiero_core.data.facts import Facts, FactsCache, find_facts
from seghiero_core.data.faults import DataFinding, findings_of, name_files
from seghiero_core.data.hints import channels_fix, look_swapped, unknown_values_hint
from seghiero_core.data.images import list_values, unknown_values
from seghiero_core.data.samples import Sample, garbage_kept
from seghiero_core.errors import DataError
from seghiero_core.hierarchy.tree import Hierarchy

DECODED_BY_FAST_CHECK = 64
_STAMPED_AT_A_TIME = 256  # by a thread, which costs more to start than a stamp


@dataclass(frozen=True)
class Audit:
    """What the check of one split found.

    Attributes:
        samples: The pairs, source by source.
        sizes: Number of images of each size (H, W) in px.
        decoded: Number of pairs that were decoded and counted; fewer than `samples` after a fast check.
        pixels: N+S int64, pixels of the decoded masks with each label: N nodes, then S sets.
        ignored: Ignored pixels of the decoded masks, and pixels of their images without data.
        values: Pixels of the decoded masks with each mask value; empty where sources have values of their own.
        facts: What was found in each of `samples`; None for one with a fault.
        faults: What is wrong.
        sources: The same for each source that has samples, by its position in `dataset.sources`.
    """

    samples: tuple[Sample, ...]
    sizes: dict[tuple[int, int], int]
    decoded: int
    pixels: np.ndarray
    ignored: int
    values: Mapping[int, int] = field(default_factory=dict)
    facts: tuple[Facts | None, ...] = ()
    faults: tuple[DataFinding, ...] = ()
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

    def found(self) -> Iterator[tuple[Sample, Facts]]:
        """Pair the samples without a fault with what was found in them.

        Yields:
            A sample and its facts.
        """
        yield from ((sample, facts) for sample, facts in zip(self.samples, self.facts, strict=True) if facts)


def audit(
    samples: Sequence[Sample],
    hierarchy: Hierarchy,
    *,
    check: Literal["full", "fast"] = "full",
    on_progress: Callable[[int, int], None] | None = None,
    cache: FactsCache | None = None,
) -> Audit:
    """Check that every image decodes, and that its mask has one channel, the image's size and known labels.

    Threads do the work: Pillow releases the interpreter's lock while it decodes.

    Args:
        samples: The pairs of one split.
        hierarchy: The class tree.
        check: "full" decodes everything; "fast" reads all headers and decodes 64 evenly spaced pairs of each source
            (the loaders check the others during training).
        on_progress: Called with (pairs done, number of pairs).
        cache: Spares decoding what was decoded before. Default: none.

    Returns:
        The sizes and pixel counts of the split.

    Raises:
        DataError: When there are faults, with a line for each kind.
    """
    found = try_audit(samples, hierarchy, check=check, on_progress=on_progress, cache=cache)
    if found.faults:
        raise DataError("\n".join(map(str, found.faults)))
    return found


def try_audit(
    samples: Sequence[Sample],
    hierarchy: Hierarchy,
    *,
    check: Literal["full", "fast"] = "full",
    on_progress: Callable[[int, int], None] | None = None,
    cache: FactsCache | None = None,
) -> Audit:
    """Check a split as `audit` does, but return its faults.

    Args:
        samples: See `audit`, as for the rest.
        hierarchy: The class tree.
        check: "full" or "fast".
        on_progress: Called with (pairs done, number of pairs).
        cache: Spares decoding what was decoded before.

    Returns:
        The faults, and the sizes and pixel counts of the pairs without.
    """
    parts: dict[int | None, _Part] = {}
    for sample in samples:
        parts.setdefault(sample.source, _Part(hierarchy.of_source(sample.source))).samples.append(sample)
    jobs = [(part, sample, decode) for part in parts.values() for sample, decode in part.decodings(check)]
    results = _facts_of([job[1:] for job in jobs], cache)
    for done, ((part, sample, _), result) in enumerate(zip(jobs, results, strict=True), start=1):
        part.add(sample, result)
        if on_progress:
            on_progress(done, len(jobs))
    audits = {source: part.audit() for source, part in parts.items()}
    return audits[None] if None in audits else _total(audits)


def _facts_of(jobs: Sequence[tuple[Sample, bool]], cache: FactsCache | None) -> Iterator[Facts | DataError]:
    """The facts of samples, or the fault of each, in their order; `jobs` say whether to decode it."""
    with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
        if cache is None:
            yield from pool.map(_try_to_find, jobs)
            return
        with garbage_kept():
            parts = [jobs[start : start + _STAMPED_AT_A_TIME] for start in range(0, len(jobs), _STAMPED_AT_A_TIME)]
            stamps = [stamp for part in pool.map(_stamps, parts) for stamp in part]
            known = list(cache.find([sample for sample, _ in jobs], stamps))
        found = pool.map(_try_to_find, [job for job, facts in zip(jobs, known, strict=True) if facts is None])
        for (sample, _), stamp, facts in zip(jobs, stamps, known, strict=True):
            if facts is None:
                facts = next(found)
                if isinstance(facts, Facts):
                    cache.add(sample, stamp, facts)
            yield facts


def _stamps(jobs: Sequence[tuple[Sample, bool]]) -> list[str | None]:
    """The stamps of samples; none of one that isn't decoded, since the cache holds what decoding found."""
    return [sample.reader.stamp(sample.index) if decode else None for sample, decode in jobs]


def _try_to_find(job: tuple[Sample, bool]) -> Facts | DataError:
    try:
        return find_facts(job[0], decode=job[1])
    except DataError as error:
        return error


class _Part:
    """The samples of one source, or of a data set without sources, and what was found in them so far."""

    def __init__(self, hierarchy: Hierarchy) -> None:
        self.hierarchy = hierarchy
        self.samples: list[Sample] = []
        self.facts: list[Facts | None] = []
        self.values: Counter[int] = Counter()
        self.faults: list[DataError] = []
        self.mislabeled: list[Path] = []

    def decodings(self, check: str) -> Iterator[tuple[Sample, bool]]:
        """Yield the samples, and whether to decode them."""
        step = 1 if check == "full" else max(1, len(self.samples) // DECODED_BY_FAST_CHECK)
        for position, sample in enumerate(self.samples):
            yield sample, position % step == 0

    def add(self, sample: Sample, result: Facts | DataError) -> None:
        """Count what was found in the next pair."""
        if isinstance(result, DataError):
            self.faults.append(result)
            self.facts.append(None)
            return
        self.facts.append(result)
        if result.values is not None:
            self.values.update(result.values)
            if unknown_values(result.values, self.hierarchy):
                self.mislabeled.append(sample.mask)

    def audit(self) -> Audit:
        """What was found in all pairs."""
        pixels = np.zeros(len(self.hierarchy.label_nodes), dtype=np.int64)
        for value, label in self.hierarchy.values.items():
            pixels[label] += self.values[value]
        found = [facts for facts in self.facts if facts]
        return Audit(
            samples=tuple(self.samples),
            sizes=dict(Counter(facts.size for facts in found)),
            decoded=sum(facts.values is not None for facts in found),
            pixels=pixels,
            ignored=self.values[self.hierarchy.ignore] + sum(facts.nodata for facts in found),
            values=dict(self.values),
            facts=tuple(self.facts),
            faults=tuple(self._findings()),
        )

    def _findings(self) -> list[DataFinding]:
        """The faults of the files, and one for all masks with unknown values; or that images and masks are swapped."""
        findings = findings_of(self.faults)
        if self.mislabeled:
            findings.append(_unknown_values(self.mislabeled, self.values, self.hierarchy))
        images, masks = [sample.image for sample in self.samples], [sample.mask for sample in self.samples]
        if findings and look_swapped(images, masks, {*self.hierarchy.values, self.hierarchy.ignore}):
            text = f"{images[0]} and the other images look like masks, {masks[0]} and the other masks like pictures."
            fix = "Swap the folders `images` and `masks` of the split."
            return [DataFinding("error", "swapped", text, fix, tuple(images))]
        return [channels_fix(finding) for finding in findings]


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
        facts=tuple(facts for found in sources.values() for facts in found.facts),
        faults=tuple(fault for found in sources.values() for fault in found.faults),
        sources=sources,
    )


def _unknown_values(masks: Sequence[Path], found: Counter[int], hierarchy: Hierarchy) -> DataFinding:
    """The error for all masks with unknown values; `found` counts the pixels of each value in all decoded masks."""
    unknown = unknown_values(found, hierarchy)
    listed = f"values that are not labels: {list_values(unknown)}"
    text = f"{masks[0]} has {listed}." if len(masks) == 1 else f"{len(masks)} masks have {listed}; {name_files(masks)}."
    return DataFinding("error", "unknown_values", text, unknown_values_hint(found, unknown, hierarchy), tuple(masks))
