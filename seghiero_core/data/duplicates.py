"""Images that are in several splits or sources: as the same file, or as files with the same bytes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    first: dict[tuple[str, str], int | None] = {}  # the first source of each pair
    repeated = []
    images, masks = _real_paths(sample.image for sample in samples), _real_paths(sample.mask for sample in samples)
    for sample, *pair in zip(samples, images, masks, strict=True):
        if first.setdefault(tuple(pair), sample.source) != sample.source:
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
    files: dict[str, str] = {}  # the first split of each file, and of each content
    contents: dict[str, tuple[str, Path]] = {}
    for split, found in audits.items():
        shared: dict[str, list[Path]] = {}
        equal: dict[str, dict[Path, Path]] = {}
        paths = list(_real_paths(sample.image for sample in found.samples))
        for sample, path in zip(found.samples, paths, strict=True):
            first = files.setdefault(path, split)
            if first != split and sample.image.exists():  # what isn't a file may just be called the same
                shared.setdefault(first, []).append(sample.image)
        for sample, path, facts in zip(found.samples, paths, found.facts, strict=True):
            if facts and facts.digest is not None and files[path] == split:
                first, other = contents.setdefault(facts.digest, (split, sample.image))
                if first != split:
                    equal.setdefault(first, {})[sample.image] = other
        warnings[split] += [_shared(split, first, images, len(found.samples)) for first, images in shared.items()]
        warnings[split] += [_equal(split, first, images, len(found.samples)) for first, images in equal.items()]


def _real_paths(paths: Iterable[Path]) -> Iterator[str]:
    """The path of each file without links. Folders are resolved once: they hold many files, and few are links."""
    folders: dict[str, str] = {}
    for path in paths:
        folder, name = os.path.split(path)
        if name in ("", ".", "..") or path.is_symlink():
            yield str(path.resolve())
            continue
        if folder not in folders:
            folders[folder] = str(Path(folder).resolve()).rstrip("/")
        yield f"{folders[folder]}/{name}"


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
