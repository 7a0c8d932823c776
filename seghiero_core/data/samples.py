"""The samples of a data set: a flat list, in a fixed order, of what its readers read."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from seghiero_core.config.readers import reader_options
from seghiero_core.config.schema import DatasetConfig
from seghiero_core.data.bands import absent_pixels, mark_nodata
from seghiero_core.data.encoded import encoded_reader
from seghiero_core.data.images import check_same_size, to_target
from seghiero_core.data.pairing import find_pairs
from seghiero_core.errors import DataError, UsageError
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.readers import READERS, Bands, Reader

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Sample:
    """An image and its mask.

    Attributes:
        reader: What reads it.
        index: Its position in the reader.
        source: The position in `dataset.sources` of the data set that it comes from; None without sources.
        bands: How its image is read; None for 8-bit RGB.
    """

    reader: Reader
    index: int
    source: int | None = None
    bands: Bands | None = None

    @property
    def name(self) -> str:
        """The name, which no other sample of its reader has."""
        return self.reader.name(self.index)

    @property
    def image(self) -> Path:
        """The image file, or what messages call it."""
        return self.reader.files(self.index)[0]

    @property
    def mask(self) -> Path:
        """The mask file, or what messages call it."""
        return self.reader.files(self.index)[1]

    def read(self, hierarchy: Hierarchy) -> tuple[np.ndarray, np.ndarray]:
        """Decode the sample, and look up the label of every mask value.

        Args:
            hierarchy: The class tree.

        Returns:
            The image, as `decode` returns it, and the target, H,W int64 labels or `IGNORE_INDEX`, which is also where
            the image has no data.

        Raises:
            DataError: When it is missing or damaged, or doesn't fit the classes.
        """
        image, mask = self.read_values(hierarchy)
        return image, to_target(mask, self.mask, hierarchy.of_source(self.source))

    def read_values(self, hierarchy: Hierarchy) -> tuple[np.ndarray, np.ndarray]:
        """Decode the sample and check that its mask has the image's size.

        Args:
            hierarchy: The class tree.

        Returns:
            The image, as `decode` returns it, and the mask, H,W values of which the ignore value of `hierarchy` is also
            where the image has no data.

        Raises:
            DataError: When it is missing or damaged, or the sizes differ.
        """
        image, mask = self.decode()
        check_same_size(self.image, image.shape[:2], self.mask, mask.shape)
        if self.bands and (absent := absent_pixels(image)).any():
            mask = np.where(absent, np.int32(hierarchy.of_source(self.source).ignore), mask)
        return image, mask

    def decode(self) -> tuple[np.ndarray, np.ndarray]:
        """Decode the sample, whatever the classes are.

        Returns:
            The image, H,W,3 uint8 RGB, or with `bands` H,W,C uint8 or float32 in stored units, NaN where there is no
            data; and the mask, H,W label values.

        Raises:
            DataError: When it is missing or damaged, or has another number of bands.
        """
        image, mask, _ = self.reader.read(self.index)
        if self.bands is None:
            return image, mask
        if image.ndim != 3 or image.shape[2] != self.bands.channels or image.dtype not in (np.uint8, np.float32):
            raise DataError(
                f"{self.image}: its reader returned {image.dtype} of shape {image.shape}, expected H,W,"
                f"{self.bands.channels} uint8 or float32. Correct the reader, or dataset.channels."
            )
        return mark_nodata(image, self.bands.nodata), mask


def samples_of(reader: Reader, source: int | None = None, bands: Bands | None = None) -> list[Sample]:
    """List the samples of a reader.

    Args:
        reader: The reader.
        source: The position of its data set in `dataset.sources`; None without sources.
        bands: How its images are read. Default: as 8-bit RGB.

    Returns:
        A sample for each index.
    """
    return [Sample(reader, index, source, bands) for index in range(len(reader))]


def find_samples(
    split: Any,
    *,
    key: str = "dataset.train",
    image_suffix: str = "",
    mask_suffix: str = "",
    bands: Bands | None = None,
) -> list[Sample]:
    """Find the samples of two folders, as for `dataset.type: folder`.

    Args:
        split: The folders, as `split.images` and `split.masks`.
        key: Where the split is in the config, for messages.
        image_suffix: See `pairing.find_pairs`.
        mask_suffix: See `pairing.find_pairs`.
        bands: How the images are read. Default: as 8-bit RGB.

    Returns:
        The samples, sorted by relative path.

    Raises:
        DataError: As `pairing.find_pairs`.
    """
    pairs = find_pairs(key, Path(split.images), Path(split.masks), image_suffix, mask_suffix, bands=bands)
    return samples_of(encoded_reader(pairs, bands), bands=bands)


def split_samples(dataset: DatasetConfig, name: str) -> list[Sample]:
    """Find the samples of one split of a config, in all its sources.

    Args:
        dataset: The config's `dataset` section.
        name: "train", "val" or "test".

    Returns:
        The samples of each source in turn, in the order of its reader.

    Raises:
        UsageError: When the config has no such split.
        DataError: When the split's data is missing or doesn't fit together.
    """
    if name not in dataset.splits:
        raise UsageError(f"--split {name}: the config has no such split; known: {', '.join(dataset.splits)}.")
    samples, faults = try_split(dataset, name)
    if faults:
        raise DataError("\n".join(map(str, faults.values())))
    return samples


def find_splits(dataset: DatasetConfig, names: Sequence[str]) -> dict[str, list[Sample]]:
    """Find the samples of several splits.

    Args:
        dataset: The config's `dataset` section.
        names: The splits, which the data set must have.

    Returns:
        What `split_samples` returns for each.

    Raises:
        DataError: When data is missing or doesn't fit together, in any of the splits.
    """
    found = {name: try_split(dataset, name) for name in names}
    faults = [f"{name}: {error}" for name, (_, missing) in found.items() for error in missing.values()]
    if faults:
        raise DataError("\n".join(faults))
    return {name: samples for name, (samples, _) in found.items()}


def try_split(dataset: DatasetConfig, name: str) -> tuple[list[Sample], dict[int | None, DataError]]:
    """Find the samples of one split as `split_samples` does, as far as its data is there.

    Args:
        dataset: The config's `dataset` section.
        name: "train", "val" or "test".

    Returns:
        The samples that are there, and the faults by the position of the source; None without sources.
    """
    samples: list[Sample] = []
    faults: dict[int | None, DataError] = {}
    bands = dataset.bands
    for position, part in enumerate(dataset.parts):
        if split := getattr(part, name):
            source = position if dataset.sources else None
            key = f"dataset.sources.{position}.{name}" if dataset.sources else f"dataset.{name}"
            try:
                with garbage_kept():
                    reader = READERS.get(part.type).open(key, bands, reader_options(part, split))
                    samples += samples_of(reader, source, bands)
            except DataError as error:
                faults[source] = error
                samples += samples_of(error.rest, source, bands) if error.rest else []
    return samples, faults


@contextmanager
def garbage_kept() -> Iterator[None]:
    """Keep Python from looking for garbage, where many objects are made that all stay: a third of the time otherwise.

    Yields:
        Nothing.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def caption(sample: Sample, dataset: DatasetConfig) -> str:
    """Name a sample in a picture.

    Args:
        sample: The sample.
        dataset: The config's `dataset` section.

    Returns:
        Its name, after that of its source where there are any.
    """
    return f"{dataset.sources[sample.source].name}: {sample.name}" if dataset.sources else sample.name


def evenly_spaced(items: Sequence[_Item], count: int) -> list[_Item]:
    """Pick evenly spaced items, starting with the first.

    Args:
        items: The items to choose from.
        count: How many to pick, at most.

    Returns:
        `count` of the items in order, or all of them if there are fewer.
    """
    if len(items) <= count:
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]
