"""What is probably meant by masks and folders that don't fit a config: the fix to name in a message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from seghiero_core.data.images import open_image
from seghiero_core.errors import DataError
from seghiero_core.hierarchy.tree import Hierarchy

_MANY_VALUES = 32  # as unknown values: more than anyone forgets to list
_FEW_COLORS = 64  # in a painted mask; pictures have more
_LABELS_SHOWN = 6
_ONE_CHANNEL = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")


def unknown_values_hint(found: Mapping[int, int], unknown: Mapping[int, int], hierarchy: Hierarchy) -> str:
    """Say how to fix masks with values that are not labels.

    Args:
        found: The number of pixels of each value in all masks.
        unknown: Those that are neither a label nor the ignore value.
        hierarchy: The class tree.

    Returns:
        One or two sentences.
    """
    names = {value: hierarchy.nodes[node] for value, node in hierarchy.values.items()}
    count = len(names)
    if set(unknown) == {count} and set(names) == set(range(count)):
        from_one = f"labels: {labels_as_yaml({value + 1: name for value, name in names.items()})}"
        if not found.get(0):
            return f"The values start at 1, the labels at 0: write {from_one}."
        return f"If 0 means unlabeled, write {from_one} and ignore: 0. Otherwise add the label of {count}."
    if len(unknown) > _MANY_VALUES:
        return (
            "So many different values come from JPEG compression, interpolation or a picture; export masks of label "
            "values as PNG, without interpolation."
        )
    return "Add them to classes.labels, or set classes.ignore to the value of pixels to ignore."


def labels_as_yaml(labels: Mapping[int, str]) -> str:
    """Write the start of `classes.labels` as YAML.

    Args:
        labels: Names by mask value.

    Returns:
        For example "{0: sky, 1: road}"; of long lists the first six and "...".
    """
    shown = dict(sorted(labels.items())[:_LABELS_SHOWN])
    text = yaml.safe_dump(shown, default_flow_style=True, allow_unicode=True, width=10_000, sort_keys=False).strip()
    return text if len(labels) <= _LABELS_SHOWN else f"{text[:-1]}, ...}}"


def look_swapped(images: Sequence[Path], masks: Sequence[Path]) -> bool:
    """Check whether images look like masks, and masks like color pictures.

    Args:
        images: What should be images; up to three are decoded.
        masks: What should be masks; likewise.

    Returns:
        True where every image has one channel with few values, and every mask has several channels with many colors.
    """
    if not images or not masks:
        return False
    try:
        return all(_looks_like_mask(path) for path in _some(images)) and all(
            _looks_like_picture(path) for path in _some(masks)
        )
    except DataError:
        return False


def _some(paths: Sequence[Path]) -> Sequence[Path]:
    return paths[:: max(1, len(paths) // 3)][:3]


def _looks_like_mask(path: Path) -> bool:
    with open_image(path) as image:
        return image.mode in _ONE_CHANNEL and len(np.unique(np.asarray(image))) <= _FEW_COLORS


def _looks_like_picture(path: Path) -> bool:
    with open_image(path) as image:
        return image.mode not in _ONE_CHANNEL and _count_colors(image) > _FEW_COLORS


def _count_colors(image: Image.Image) -> int:
    rgb = np.asarray(image.convert("RGB"), dtype=np.uint32).reshape(-1, 3)
    return len(np.unique(rgb @ np.array([1 << 16, 1 << 8, 1], dtype=np.uint32)))
