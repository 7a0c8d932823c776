"""Counts of a data set as plain values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from seghiero_core.config.schema import Config
from seghiero_core.data.audit import Audit
from seghiero_core.data.samples import Sample
from seghiero_core.hierarchy.tree import Hierarchy

_THREADS = 4


class Moments(NamedTuple):
    """The pixels of each of C bands, without those that have no data.

    Attributes:
        count: The number of pixels.
        mean: C float64.
        squares: C float64, the sum of the squared distances from the mean.
    """

    count: int
    mean: np.ndarray
    squares: np.ndarray

    @property
    def std(self) -> np.ndarray:
        """The standard deviation of each band, of the whole population."""
        return np.sqrt(self.squares / max(1, self.count))

    def merged(self, other: Moments) -> Moments:
        """Join two sets of pixels.

        Args:
            other: The other pixels.

        Returns:
            The moments of both. Reference: Chan et al. 1979, "Updating Formulae and a Pairwise Algorithm for Computing
            Sample Variances".
        """
        count = self.count + other.count
        if not count:
            return self
        distance, share = other.mean - self.mean, other.count / count
        squares = self.squares + other.squares + distance**2 * self.count * share
        return Moments(count, self.mean + distance * share, squares)


def band_moments(samples: Sequence[Sample], on_progress: Callable[[int, int], None] | None = None) -> Moments:
    """Measure the mean and standard deviation of each band over all pixels, one image at a time.

    Args:
        samples: The samples, with `bands`.
        on_progress: Called with (images done, number of images).

    Returns:
        The moments of all images together.

    Raises:
        DataError: When an image can't be read.
    """
    channels = samples[0].bands.channels
    total = Moments(0, np.zeros(channels), np.zeros(channels))
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(samples), _THREADS):  # so that few images are held at once
            for found in pool.map(_moments, samples[start : start + _THREADS]):
                total = total.merged(found)
            if on_progress:
                on_progress(min(start + _THREADS, len(samples)), len(samples))
    return total


def _moments(sample: Sample) -> Moments:
    image = sample.decode()[0]
    pixels = image.reshape(-1, image.shape[2])
    if pixels.dtype.kind == "f":
        pixels = pixels[~np.isnan(pixels[:, 0])]
    if not len(pixels):
        return Moments(0, np.zeros(pixels.shape[1]), np.zeros(pixels.shape[1]))
    mean = pixels.mean(axis=0, dtype=np.float64)
    squares = np.array([np.square(band - mean[i]).sum() for i, band in enumerate(pixels.T.astype(np.float64))])
    return Moments(len(pixels), mean, squares)


def split_stats(config: Config, audits: dict[str, Audit]) -> dict[str, Any]:
    """Turn the audits of some splits into plain values.

    Args:
        config: A loaded config.
        audits: The audits.

    Returns:
        The "splits" of `data_stats`.
    """
    hierarchy, sources = config.hierarchy, config.dataset.sources or []
    splits = {split: _split_stats(found, hierarchy) for split, found in audits.items()}
    for split in splits if sources else ():
        splits[split]["sources"] = {
            sources[position].name: _split_stats(found, hierarchy.of_source(position))
            for position, found in audits[split].sources.items()
        }
    return splits


def _split_stats(found: Audit, hierarchy: Hierarchy) -> dict[str, Any]:
    labelled = max(1, int(found.pixels.sum()))
    if found.sources:
        used = sorted({label for i in found.sources for label in hierarchy.of_source(i).values.values()})
        counted = [({}, label, int(found.pixels[label])) for label in used]
    else:
        values = sorted(hierarchy.values.items())
        counted = [({"value": value}, label, found.values.get(value, 0)) for value, label in values]
    labels = [
        {**value, "name": hierarchy.label_name(label), "pixels": pixels, "share": pixels / labelled}
        for value, label, pixels in counted
    ]
    levels = []
    for number, level in enumerate(hierarchy.levels):
        class_of_label = hierarchy.label_to_level[number]
        classes = []
        for position, name in enumerate(hierarchy.level_names(number)):
            pixels = int(found.pixels[class_of_label == position].sum())
            classes.append({"name": name, "pixels": pixels, "share": pixels / labelled})
        unlabelled = int(found.pixels[class_of_label < 0].sum()) / labelled
        levels.append({"name": level.name, "unlabelled": unlabelled, "classes": classes})
    sizes = sorted(found.sizes.items(), key=lambda entry: -entry[1])
    return {
        "images": len(found.samples),
        "sizes": [{"height": height, "width": width, "images": count} for (height, width), count in sizes],
        "ignored": found.ignored / max(1, int(found.pixels.sum()) + found.ignored),
        "labels": labels,
        "levels": levels,
    }
