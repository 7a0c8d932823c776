"""Sharing the images of a data set out to training, validation and test, as lists of names."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from seghiero_core.config.readers import SPLITS, reader_options, relocate
from seghiero_core.config.schema import Config
from seghiero_core.data.check import check_data
from seghiero_core.data.facts import Facts
from seghiero_core.data.samples import Sample, samples_of
from seghiero_core.data.stratify import stratify
from seghiero_core.errors import DataError, UsageError, shorten
from seghiero_core.readers import READERS, Bands


@dataclass(frozen=True)
class Division:
    """How the images of a data set, or of one source of it, are shared out.

    Attributes:
        source: The name of the source; None for a data set without.
        names: The names of the images of each split, sorted.
        groups: The number of groups of each split.
        pixels: The pixels of each split with each label that occurs.
        root: The root of the data set or source.
        options: What a split has in the config, besides its list; paths are relative to `root` where they are below it.
    """

    source: str | None
    names: Mapping[str, list[str]]
    groups: Mapping[str, int]
    pixels: Mapping[str, Mapping[str, int]]
    root: Path
    options: Mapping[str, Any]

    def file(self, split: str) -> str:
        """Name the list of a split.

        Args:
            split: "train", "val" or "test".

        Returns:
            The name of a text file.
        """
        return f"{split}.txt" if self.source is None else f"{self.source.replace('/', '%2F')}-{split}.txt"

    def section(self, folder: Path) -> dict[str, Any]:
        """Return what the config needs to read the lists.

        Args:
            folder: Where the lists are.

        Returns:
            The keys of each split.
        """
        place, root = folder.absolute(), self.root
        place = os.path.relpath(place, root) if root.is_relative_to(place) else _below(place, root)
        return {split: {**self.options, "list": str(Path(place, self.file(split)))} for split in self.names}

    def lacking(self) -> dict[str, list[str]]:
        """Find labels that a split has no pixel of, although another has.

        Returns:
            Their names for each split with such labels.
        """
        found = {split: [name for name, count in each.items() if not count] for split, each in self.pixels.items()}
        return {split: names for split, names in found.items() if names}


def divide(
    config: Config,
    shares: Mapping[str, float],
    *,
    by_group: str | None = None,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Division]:
    """Share the images out, so that each split gets its share of the images and of the pixels of each class.

    All images of the config that are in the folders of `dataset.train` are shared out, whatever split they are in now.
    Each source is divided by itself. See `stratify` for the method.

    Args:
        config: A loaded config; it needs no validation set.
        shares: The share of each split; they sum to 1.
        by_group: A regular expression that is searched in the name of each image. Images for which its first group, or
            all of it where it has none, is equal stay together. Default: each image is on its own.
        seed: Another one gives another choice among equals.
        on_progress: Called with (images checked, number of images).

    Returns:
        A division for each source with training images, or one for a data set without sources.

    Raises:
        UsageError: When `by_group` is no regular expression, or a reader has no lists.
        DataError: When the data has errors, a name doesn't match, or there are fewer groups than splits.
    """
    try:
        pattern = re.compile(by_group) if by_group is not None else None
    except re.error as error:
        raise UsageError(f"--by-group {by_group}: not a regular expression: {error}.") from None
    sources = config.dataset.sources
    parts = {i if sources else None: part for i, part in enumerate(config.dataset.parts) if part.train}
    pools = {source: _pool(part, source, config.dataset.bands) for source, part in parts.items()}
    groups = {source: _groups([sample.name for sample in pool], pattern, shares) for source, pool in pools.items()}
    everything = [sample for pool in pools.values() for sample in pool]
    progress = (lambda _, done, of: on_progress(done, of)) if on_progress else None
    checked = check_data(config, {"train": everything}, on_progress=progress)
    checked.raise_errors()
    audit = checked.audits["train"]
    divisions = []
    for source, part in parts.items():
        facts = [each for _, each in (audit if source is None else audit.sources[source]).found()]
        pixels, labels = _label_pixels(facts, config, source)
        _, numbers = np.unique(groups[source], return_inverse=True)
        per_group = np.zeros((numbers.max() + 1, pixels.shape[1]), dtype=np.int64)
        np.add.at(per_group, numbers, pixels)
        of_group = stratify(per_group, np.bincount(numbers), list(shares.values()), seed)
        where = of_group[numbers]
        splits = dict(enumerate(shares))
        options = {key: value for key, value in part.train.model_extra.items() if key != "list"}
        options |= relocate(part.type, options, lambda path, _, root=part.root: _below(Path(path), root))
        divisions.append(
            Division(
                source=None if source is None else sources[source].name,
                names={
                    split: [sample.name for sample, i in zip(pools[source], where, strict=True) if i == number]
                    for number, split in splits.items()
                },
                groups={split: int((of_group == number).sum()) for number, split in splits.items()},
                pixels={
                    split: dict(zip(labels, pixels[where == number].sum(axis=0).tolist(), strict=True))
                    for number, split in splits.items()
                },
                root=part.root,
                options=options,
            )
        )
    return divisions


def list_files(divisions: Sequence[Division], folder: Path) -> dict[Path, str]:
    """Return the lists as text.

    Args:
        divisions: What `divide` returned.
        folder: Where to put them.

    Returns:
        The text of each file: a name in each line.
    """
    return {
        folder / division.file(split): "".join(f"{name}\n" for name in names)
        for division in divisions
        for split, names in division.names.items()
    }


def _pool(part: Any, source: int | None, bands: Bands | None) -> list[Sample]:
    """All samples of a part that are in the folders of its training images, sorted by name."""
    section = "dataset" if source is None else f"dataset.sources.{source}"
    entry = READERS.get(part.type)
    if "list" not in entry.options:
        raise UsageError(f"{section}.type: '{part.type}' has no lists of images; `data split` can't divide it.")
    found: dict[str, Sample] = {}
    folders = {**reader_options(part, part.train), "list": None}
    for split in SPLITS:
        if options := getattr(part, split):
            options = reader_options(part, options)
            if {**options, "list": None} != folders:
                raise UsageError(
                    f"{section}.{split} has images of its own; remove it to divide the images of {section}.train."
                )
            for sample in samples_of(entry.open(f"{section}.{split}", bands, options), source, bands):
                found.setdefault(sample.name, sample)
    if odd := [name for name in found if name != name.strip() or len(name.splitlines()) > 1]:
        raise DataError(
            f"{section}: {odd[0]!r} can't be in a list: rename it without line breaks and spaces at the ends."
        )
    return [found[name] for name in sorted(found)]


def _groups(names: Sequence[str], pattern: re.Pattern[str] | None, shares: Mapping[str, float]) -> list[str]:
    """The group of each image."""
    groups = [*names]
    if pattern:
        matches = [pattern.search(name) for name in names]
        without = [
            name for name, match in zip(names, matches, strict=True) if not match or match[bool(pattern.groups)] is None
        ]
        if without:
            raise DataError(
                f"--by-group {pattern.pattern}: {len(without)} of {len(names)} names don't match: {shorten(without)}."
            )
        groups = [match[bool(pattern.groups)] for match in matches if match]
    if (count := len(set(groups))) < len(shares):
        kind = "groups" if pattern else "images"
        raise DataError(f"there are {count} {kind} for {len(shares)} splits ({', '.join(shares)}).")
    return groups


def _label_pixels(facts: Sequence[Facts], config: Config, source: int | None) -> tuple[np.ndarray, list[str]]:
    """The pixels of each image with each label that occurs, and the names of these."""
    hierarchy = config.hierarchy.of_source(source)
    pixels = np.zeros((len(facts), len(hierarchy.label_nodes)), dtype=np.int64)
    for row, each in zip(pixels, facts, strict=True):
        for value, count in (each.values or {}).items():
            if value in hierarchy.values:
                row[hierarchy.values[value]] += count
    occurring = np.flatnonzero(pixels.any(axis=0))
    return pixels[:, occurring], [hierarchy.label_name(label) for label in occurring.tolist()]


def _below(path: Path, root: Path) -> str:
    """A path relative to the root where it is below it."""
    return os.path.relpath(path, root) if path.is_relative_to(root) else str(path)
