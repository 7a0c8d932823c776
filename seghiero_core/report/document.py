"""The document of a report: everything that the page shows, as plain values."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from seghiero_core.checkpoint import Checkpoint
from seghiero_core.config.schema import Config
from seghiero_core.errors import UsageError, shorten
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.report.run_facts import run_curves, run_origin, run_status
from seghiero_core.runs import run_of
from seghiero_core.version import __version__

PICTURES = ("picture", "truth", "prediction")
"""The keys of an image that hold its pictures."""


def report_document(runs: Sequence[Mapping[str, Any]], hierarchy: Hierarchy) -> dict[str, Any]:
    """Describe a report.

    Args:
        runs: What `run_document` returns for each run; the others are compared with the first.
        hierarchy: Their class tree.

    Returns:
        The document that `render_page` shows. Numbers that aren't finite are None.
    """
    nodes = [
        {
            "name": name,
            "color": "#{:02x}{:02x}{:02x}".format(*hierarchy.colors[i].tolist()),
            "parent": None if hierarchy.parents[i] < 0 else int(hierarchy.parents[i]),
            "leaf": i < len(hierarchy.leaves),
        }
        for i, name in enumerate(hierarchy.nodes)
    ]
    names = Counter(run["name"] for run in runs)
    runs = [{**run, "name": run["name"] if names[run["name"]] == 1 else run["folder"]} for run in runs]
    return {
        "title": ", ".join(run["name"] for run in runs),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seghiero": __version__,
        "tree": {
            "levels": [level.name for level in hierarchy.levels],
            "nodes": nodes,
            "classes": [list(level.nodes) for level in hierarchy.levels],
        },
        "runs": [_finite(run) for run in runs],
    }


def checkpoint_document(found: Sequence[tuple[Checkpoint, Mapping[str, Any]]]) -> dict[str, Any]:
    """Describe a report on checkpoints.

    Args:
        found: Each checkpoint, and what `measurement` returned for it. They have one class tree, see
            `check_same_tree`.

    Returns:
        The document that `render_page` shows.
    """
    runs = [run_document(each.folder, each.step, each.config, measured) for each, measured in found]
    return report_document(runs, found[0][0].config.hierarchy)


def run_document(
    checkpoint: Path, step: int, config: Config, measured: Mapping[str, Any], *, status: str | None = None
) -> dict[str, Any]:
    """Describe a run.

    Args:
        checkpoint: The checkpoint folder that was measured.
        step: Its optimizer steps.
        config: Its config.
        measured: What `measurement` returned.
        status: What `run_status` returns. Default: it is called.

    Returns:
        An entry of "runs" in the document.
    """
    run = run_of(checkpoint)
    folder = run or checkpoint.resolve()
    return {
        "name": folder.name,
        "folder": str(folder),
        "checkpoint": checkpoint.resolve().name,
        "step": step,
        "status": status or run_status(run, config),
        **{key: measured[key] for key in ("evaluation", "images", "codes", "cells")},
        "curves": run_curves(run),
        "config": config.to_yaml(),
        **run_origin(run),
    }


def check_same_tree(first: Checkpoint, second: Checkpoint) -> None:
    """Check that two checkpoints can be compared.

    Args:
        first: One of them.
        second: The other.

    Raises:
        UsageError: When the nodes, their order or their parents differ.
    """
    one, other = first.config.hierarchy, second.config.hierarchy
    if one.nodes == other.nodes and (one.parents == other.parents).all():
        return
    parts = []
    for title, own, others in (("first", one, other), ("second", other, one)):
        if missing := [node for node in own.nodes if node not in others.nodes]:
            parts.append(f"only in the {title}: {shorten(missing, 5)}")
    detail = "; ".join(parts) or "the names are the same, but their order or their tree differs"
    raise UsageError(f"{first.folder} and {second.folder} can't be compared: their classes differ ({detail}).")


def without_pictures(document: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a document without the pictures.

    Args:
        document: The document.

    Returns:
        The copy.
    """
    return _with_pictures(document, set())


def fit_pictures(document: Mapping[str, Any], limit: int) -> dict[str, Any]:
    """Copy a document with as many pictures as fit a size, of the same images in every run.

    Args:
        document: The document.
        limit: Bytes that the pictures may take.

    Returns:
        The copy. By mean mIoU, the worst, the best and the median image come first.
    """
    found: dict[tuple[str | None, str], list[Mapping[str, Any]]] = {}
    for run in document["runs"]:
        for image in run["images"]:
            found.setdefault(_key(image), []).append(image)
    shown = set()
    for key in _by_interest(found):
        entries = [(name, image[name]) for image in found[key] for name in PICTURES if name in image]
        size = sum(len(f',"{name}":"{picture}"') for name, picture in entries)
        if size <= limit:
            shown.add(key)
            limit -= size
    return _with_pictures(document, shown)


def _by_interest(found: Mapping[Any, Sequence[Mapping[str, Any]]]) -> list[Any]:
    """The images that most runs have first; of these by turns the next one from below, above and the middle."""

    def score(key: Any) -> float:
        known = [miou for image in found[key] for miou in image["miou"] if miou is not None]
        return sum(known) / len(known) if known else math.inf

    ordered = []
    for count in sorted({len(images) for images in found.values()}, reverse=True):
        keys = sorted((key for key, images in found.items() if len(images) == count), key=score)
        middle = sorted(range(len(keys)), key=lambda i: abs(i - (len(keys) - 1) / 2))
        turns = zip(keys, reversed(keys), (keys[i] for i in middle), strict=True)
        ordered += [key for turn in turns for key in turn]
    return list(dict.fromkeys(ordered))


def _with_pictures(document: Mapping[str, Any], shown: set[Any]) -> dict[str, Any]:
    """Copy a document with the pictures of some images."""
    runs = [
        {
            **run,
            "images": [
                {key: value for key, value in image.items() if key not in PICTURES or _key(image) in shown}
                for image in run["images"]
            ],
        }
        for run in document["runs"]
    ]
    return {**document, "runs": runs}


def _key(image: Mapping[str, Any]) -> tuple[str | None, str]:
    return image.get("source"), image["name"]


def _finite(value: Any) -> Any:
    """Replace numbers that are not finite, which JSON doesn't have, by None."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
