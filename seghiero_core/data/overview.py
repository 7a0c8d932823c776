"""A data set at a glance, before anything is trained on it: its faults, its statistics, a picture of its samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from seghiero_core.config.schema import Config
from seghiero_core.data.audit import Audit, audit
from seghiero_core.data.loaders import SegmentationDataset
from seghiero_core.data.samples import Sample, caption, evenly_spaced, split_samples
from seghiero_core.errors import DataError
from seghiero_core.figures import prediction_grid
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.losses.class_weights import CLASS_WEIGHTS, class_weights


def check_data(config: Config, on_progress: Callable[[str, int, int], None] | None = None) -> dict[str, Audit]:
    """Decode and check every pair of every split, whatever `dataset.check` says.

    Args:
        config: A loaded config.
        on_progress: Called with (split, pairs done, pairs in the split).

    Returns:
        The sizes and pixel counts of each split.

    Raises:
        DataError: When there are faults; it lists those of all splits.
    """
    audits, faults = {}, []
    for split in config.dataset.splits:
        progress = partial(on_progress, split) if on_progress else None
        try:
            audits[split] = audit(split_samples(config.dataset, split), config.hierarchy, on_progress=progress)
        except DataError as error:
            faults += [f"{split}: {line}" for line in str(error).splitlines()]
    if faults:
        raise DataError("\n".join(faults))
    return audits


def data_stats(config: Config, audits: dict[str, Audit]) -> dict[str, Any]:
    """Turn the result of `check_data` into plain values: images, sizes, pixels per class and level, class weights.

    Args:
        config: A loaded config.
        audits: What `check_data` returned for it.

    Returns:
        {"splits": {name: {"images", "sizes": [{"height", "width", "images"}], "ignored": 0..1, "labels": [{"value",
        "name", "pixels", "share"}], "levels": [{"name", "unlabelled", "classes": [{"name", "pixels", "share"}]}]}},
        "class_weights": {scheme: {leaf: weight}}}. Shares are fractions of the labeled pixels. "labels" counts the
        pixels with each mask value; a class of "levels" counts all labels below it, and "unlabelled" is the fraction
        labeled with a class coarser than the level. With `dataset.sources`, a split also has "sources": {name: the same
        for that source}, and its own "labels" have no "value". Class weights count each source by its weight.
    """
    hierarchy, sources = config.hierarchy, config.dataset.sources or []
    leaves = hierarchy.leaves
    counts = audits["train"].drawn_pixels(config.dataset.weights)[: len(leaves)]
    splits = {split: _split_stats(found, hierarchy) for split, found in audits.items()}
    for split in splits if sources else ():
        splits[split]["sources"] = {
            sources[position].name: _split_stats(found, hierarchy.of_source(position))
            for position, found in audits[split].sources.items()
        }
    return {
        "splits": splits,
        "class_weights": {
            scheme: dict(zip(leaves, class_weights(counts, scheme).tolist(), strict=True)) for scheme in CLASS_WEIGHTS
        },
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
        [np.asarray(sample["image"].permute(1, 2, 0)) for sample in shown],
        [sample["target"].numpy() for sample in shown],
        None,
        config.hierarchy,
        captions=[caption(samples[index], samples[index].image.name, config.dataset) for index in chosen],
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
