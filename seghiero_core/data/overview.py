"""A data set at a glance, before anything is trained on it: its statistics, and a picture of its samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from seghiero_core.config.schema import Config
from seghiero_core.data.audit import Audit
from seghiero_core.data.display import picture_of
from seghiero_core.data.loaders import SegmentationDataset
from seghiero_core.data.samples import Sample, caption, evenly_spaced, split_samples
from seghiero_core.data.statistics import band_moments, split_stats
from seghiero_core.figures import prediction_grid
from seghiero_core.losses.class_weights import CLASS_WEIGHTS, class_weights


def data_stats(
    config: Config, audits: dict[str, Audit], on_progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Turn the audits of a data set into plain values: images, sizes, pixels per class and level, class weights.

    Args:
        config: A loaded config.
        audits: Those of its splits.
        on_progress: Called with (images measured, number of images), where there are bands to measure.

    Returns:
        {"splits": {name: {"images", "sizes": [{"height", "width", "images"}], "ignored": 0..1, "labels": [{"value",
        "name", "pixels", "share"}], "levels": [{"name", "unlabelled", "classes": [{"name", "pixels", "share"}]}]}},
        "class_weights": {scheme: {leaf: weight}}}, and with `dataset.channels` "mean" and "std" of each band over the
        training images. Shares are fractions of the labeled pixels. "labels" counts the
        pixels with each mask value; a class of "levels" counts all labels below it, and "unlabelled" is the fraction
        labeled with a class coarser than the level. With `dataset.sources`, a split also has "sources": {name: the same
        for that source}, and its own "labels" have no "value". Class weights count each source by its weight.
    """
    leaves = config.hierarchy.leaves
    counts = audits["train"].drawn_pixels(config.dataset.weights)[: len(leaves)]
    bands = {}
    if config.dataset.bands:
        moments = band_moments(audits["train"].samples, on_progress)
        bands = {"mean": moments.mean.tolist(), "std": moments.std.tolist()}
    return {
        "splits": split_stats(config, audits),
        "class_weights": {
            scheme: dict(zip(leaves, class_weights(counts, scheme).tolist(), strict=True)) for scheme in CLASS_WEIGHTS
        },
        **bands,
    }


def preview(config: Config, split: str, count: int, *, augmented: bool) -> Image.Image:
    """Draw evenly spaced samples of a split, equally many of each source, with their labels at every level.

    Args:
        config: A loaded config.
        split: "train", "val" or "test".
        count: How many samples to draw, at most.
        augmented: Whether to augment them as in the first epoch of training.

    Returns:
        A picture with one row per sample.

    Raises:
        UsageError: When the config has no such split.
        DataError: When files are missing or damaged, or don't fit the classes.
    """
    samples = split_samples(config.dataset, split)
    chosen = _chosen(samples, count)
    if augmented:
        dataset = SegmentationDataset(samples, config.hierarchy, config.transform, config.training.seed)
        shown = [dataset[(0, index, 0)] for index in chosen]
    else:
        dataset = SegmentationDataset(samples, config.hierarchy)
        shown = [dataset[index] for index in chosen]
    return prediction_grid(
        [picture_of(sample["image"], config.dataset.bands) for sample in shown],
        [sample["target"].numpy() for sample in shown],
        None,
        config.hierarchy,
        captions=[caption(samples[index], config.dataset) for index in chosen],
    )


def _chosen(samples: Sequence[Sample], count: int) -> list[int]:
    """The positions of evenly spaced samples, equally many of each source as far as it has so many."""
    parts: dict[int | None, list[int]] = {}
    for position, sample in enumerate(samples):
        parts.setdefault(sample.source, []).append(position)
    shares = dict.fromkeys(parts, 0)
    while sum(shares.values()) < min(count, len(samples)):
        for source in [source for source, positions in parts.items() if shares[source] < len(positions)]:
            shares[source] += sum(shares.values()) < count
    return [position for source, share in shares.items() for position in evenly_spaced(parts[source], share)]
