"""What a report needs of an evaluation: plain values, with the pictures of images."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seghiero_core.config.schema import DatasetConfig, SplitConfig
from seghiero_core.data.samples import Sample
from seghiero_core.evaluation.images import ImageCollector
from seghiero_core.metrics.metrics import Metrics
from seghiero_core.run_files import MANIFEST


def measurement(
    document: dict[str, Any],
    metrics: Metrics,
    images: ImageCollector,
    samples: Sequence[Sample],
    dataset: DatasetConfig,
    folders: SplitConfig | None = None,
) -> dict[str, Any]:
    """Describe an evaluation for a report.

    Args:
        document: What `summary` returns, with what was measured: "split" and what `measured_data` returns.
        metrics: The counts.
        images: The images, those of all processes.
        samples: All images that were measured.
        dataset: The config's `dataset` section.
        folders: The folders, if they are not those of a split.

    Returns:
        "evaluation", the document with the confusion matrix, the calibration and the back-off curve; "images", "codes"
        and "cells", see `ImageCollector.document`.
    """
    levels = [
        {**level, "confusion": _nonzero(metrics.confusion(i)), "calibration": metrics.calibration(i)}
        for i, level in enumerate(document["levels"])
    ]
    curve = {"back_off_curve": metrics.back_off_curve(), "back_off_area": metrics.back_off_area()}

    def describe(index: int) -> dict[str, Any]:
        sample = samples[index]
        source = {} if sample.source is None else {"source": dataset.sources[sample.source].name}
        return {"name": sample.name, **source}

    return {"evaluation": {**document, **curve, "levels": levels}, **images.document(describe)}


def measured_data(
    samples: Sequence[Sample], dataset: DatasetConfig, split: str, folders: SplitConfig | None = None
) -> dict[str, Any]:
    """Say how many images were measured, and which folders they and their masks are in.

    Args:
        samples: The images.
        dataset: The config's `dataset` section.
        split: The split that they come from.
        folders: The folders, if they are not those of a split.

    Returns:
        "images" and "data"; with sources "images", and under "sources" both of each source by its name.
    """
    found = {}
    for source, images in sorted(Counter(sample.source for sample in samples).items()):
        place = folders or getattr(dataset.parts[source or 0], split)
        found[source] = {"images": images, "data": place.model_dump(mode="json")}
    if folders is not None or not dataset.sources:
        (facts,) = found.values()
        return facts
    return {"images": len(samples), "sources": {dataset.sources[i].name: facts for i, facts in found.items()}}


def weights_digest(checkpoint: Path) -> str:
    """Read the hash of the weights of a checkpoint, by which a measurement is known to be of it.

    Args:
        checkpoint: The folder of an intact checkpoint.

    Returns:
        The SHA-256, 64 hexadecimal digits.
    """
    return json.loads((checkpoint / MANIFEST).read_text())["sha256"]["model.safetensors"]


def _nonzero(confusion: np.ndarray) -> list[list[int]]:
    """The cells of a C,C+1 confusion matrix that have pixels: true class, predicted class (-1: none), pixels."""
    truth, column = np.nonzero(confusion)
    return np.stack([truth, column - 1, confusion[truth, column]], axis=1).tolist()
