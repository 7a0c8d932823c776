"""Images that are in several splits or sources: as the same file, or as files with the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from seghiero_core.data.audit import Audit
from seghiero_core.data.faults import DataFinding, name_files
from seghiero_core.data.samples import Sample


def repeated_in_sources(samples: Sequence[Sample]) -> list[DataFinding]:
    """Check whether two sources have the same images with the same masks, which is likely where one lacks its `root`.

    Args:
        samples: The samples of one split, of all its sources.

    Returns:
        A warning, or nothing.
    """
    first: dict[tuple[Path, Path], int | None] = {}  # the first source of each pair
    repeated = []
    for sample in samples:
        pair = sample.image.resolve(), sample.mask.resolve()
        if first.setdefault(pair, sample.source) != sample.source:
            repeated.append(sample.image)
    if not repeated:
        return []
    text = f"{len(repeated)} images with the same masks are in several of dataset.sources: {name_files(repeated)}."
    return [DataFinding("warning", "repeated_in_sources", text, "Give each source its own root.", tuple(repeated))]


def add_duplicates(warnings: dict[str, list[DataFinding]], audits: Mapping[str, Audit]) -> None:
    """Warn of images of one split that an earlier split has, too.

    Args:
        warnings: The warnings of every split, which get more.
        audits: The audits of the splits.
    """
    files: dict[Path, str] = {}  # the first split of each file, and of each content
    contents: dict[str, tuple[str, Path]] = {}
    for split, found in audits.items():
        shared: dict[str, list[Path]] = {}
        equal: dict[str, dict[Path, Path]] = {}
        for sample in found.samples:
            first = files.setdefault(sample.image.resolve(), split)
            if first != split and sample.image.exists():  # what isn't a file may just be called the same
                shared.setdefault(first, []).append(sample.image)
        for sample, facts in found.found():
            if facts.digest is not None and files[sample.image.resolve()] == split:
                first, other = contents.setdefault(facts.digest, (split, sample.image))
                if first != split:
                    equal.setdefault(first, {})[sample.image] = other
        warnings[split] += [_shared(split, first, images, len(found.samples)) for first, images in shared.items()]
        warnings[split] += [_equal(split, first, images, len(found.samples)) for first, images in equal.items()]


def _shared(split: str, first: str, images: list[Path], count: int) -> DataFinding:
    share = "all" if len(images) == count else f"{len(images)} of {count}"
    text = f"{share} images are also in {first}: {name_files(images)}."
    fix = f"Metrics on images that were trained on are too good; give {split} other images."
    return DataFinding("warning", "shared_images", text, fix, tuple(images))


def _equal(split: str, first: str, images: dict[Path, Path], count: int) -> DataFinding:
    share = "all" if len(images) == count else f"{len(images)} of {count}"
    named = name_files([*images], [f"same as {other}" for other in images.values()])
    text = f"{share} images have the same bytes as images in {first}: {named}."
    fix = f"Metrics on images that were trained on are too good; remove them from {split} or {first}."
    return DataFinding("warning", "duplicate_images", text, fix, (*images, *images.values()))
