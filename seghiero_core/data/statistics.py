"""Counts of a data set as plain values."""

from __future__ import annotations

from typing import Any

from seghiero_core.config.schema import Config
from seghiero_core.data.audit import Audit
from seghiero_core.hierarchy.tree import Hierarchy


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
