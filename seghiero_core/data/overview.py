"""What a data set holds, before anything is trained on it: its faults, its numbers, a picture of its samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from seghiero_core.config.schema import Config
from seghiero_core.data.audit import Audit, audit
from seghiero_core.data.loaders import Augment, SegmentationDataset
from seghiero_core.data.samples import SPLITS, evenly_spaced, split_samples
from seghiero_core.errors import DataError
from seghiero_core.figures import prediction_grid
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.losses.class_weights import CLASS_WEIGHTS, class_weights

Progress = Callable[[str, int, int], None]


def check_data(config: Config, on_progress: Progress | None = None) -> dict[str, Audit]:
    """Every split decoded whole, whatever `dataset.check` says. `on_progress`: (split, pairs done, pairs in all).

    Raises DataError with the faults of all splits.
    """
    hierarchy, audits, faults = config.hierarchy, {}, []
    for name in SPLITS:
        if getattr(config.dataset, name) is None:
            continue
        tell = (lambda done, of, name=name: on_progress(name, done, of)) if on_progress else None
        try:
            audits[name] = audit(split_samples(config.dataset, name), hierarchy, on_progress=tell)
        except DataError as error:
            faults.append(f"{name}: {error}")
    if faults:
        raise DataError("\n".join(faults))
    return audits


def data_stats(config: Config, audits: dict[str, Audit]) -> dict[str, Any]:
    """The numbers of `check_data` as plain values: images, sizes, pixels per class and level, class weights.

    {"splits": {name: {"images", "sizes": [{"height", "width", "images"}], "ignored": 0..1, "levels": [{"name",
    "unlabelled", "classes": [{"name", "pixels", "share"}]}]}}, "class_weights": {how: {leaf: weight}}}. Shares are of
    the labelled pixels; `unlabelled` of them stand at a coarser class than the level's.
    """
    hierarchy = config.hierarchy
    leaves = hierarchy.leaves
    counts = audits["train"].pixels[: len(leaves)]
    return {
        "splits": {name: _split_stats(found, hierarchy) for name, found in audits.items()},
        "class_weights": {
            how: dict(zip(leaves, class_weights(counts, how).tolist(), strict=True)) for how in CLASS_WEIGHTS
        },
    }


def _split_stats(found: Audit, hierarchy: Hierarchy) -> dict[str, Any]:
    labelled = max(1, int(found.pixels.sum()))
    levels = []
    for number, level in enumerate(hierarchy.levels):
        of_node = hierarchy.node_to_level[number]
        counts = [int(found.pixels[of_node == i].sum()) for i in range(len(level.nodes))]
        classes = [
            {"name": name, "pixels": count, "share": count / labelled}
            for name, count in zip(hierarchy.level_names(number), counts, strict=True)
        ]
        unlabelled = int(found.pixels[of_node < 0].sum()) / labelled
        levels.append({"name": level.name, "unlabelled": unlabelled, "classes": classes})
    sizes = sorted(found.sizes.items(), key=lambda entry: -entry[1])
    return {
        "images": found.samples,
        "sizes": [{"height": height, "width": width, "images": count} for (height, width), count in sizes],
        "ignored": found.ignored / max(1, int(found.pixels.sum()) + found.ignored),
        "levels": levels,
    }


def preview(config: Config, split: str, count: int, *, augmented: bool) -> Image.Image:
    """`count` samples of a split, evenly spread, with their labels at every level; or as a training's first epoch
    gets them where `augmented`.

    Raises UsageError for a split that the config hasn't, DataError for files that don't fit it.
    """
    samples = split_samples(config.dataset, split)
    hierarchy = config.hierarchy
    augment = Augment(**config.transform.model_dump(), seed=config.training.seed) if augmented else None
    dataset = SegmentationDataset(samples, hierarchy, augment)
    chosen = evenly_spaced(range(len(samples)), count)
    shown = [dataset[(0, i) if augmented else i] for i in chosen]
    return prediction_grid(
        [np.asarray(sample["image"].permute(1, 2, 0)) for sample in shown],
        [sample["target"].numpy() for sample in shown],
        None,
        hierarchy,
        captions=[samples[i].image.name for i in chosen],
    )
