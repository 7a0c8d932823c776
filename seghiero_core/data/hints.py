"""What is probably meant by masks and folders that don't fit a config: the fix to name in a message."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from seghiero_core.data.faults import DataFinding
from seghiero_core.data.images import open_image
from seghiero_core.errors import DataError
from seghiero_core.hierarchy.tree import Hierarchy

_MANY_VALUES = 32  # as unknown values: more than anyone forgets to list
_FEW_COLORS = 64  # in a painted mask; pictures have more
_LABELS_SHOWN = 6
_WHITE = 255
_ONE_CHANNEL = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")


def unknown_values_hint(found: Mapping[int, int], unknown: Mapping[int, int], hierarchy: Hierarchy) -> str:
    """Say how to fix masks with values that are not labels.

    Args:
        found: The number of pixels of each value in all masks.
        unknown: Those that are neither a label nor the ignore value.
        hierarchy: The class tree, with the mask values of their source.

    Returns:
        One or two sentences.
    """
    values = hierarchy.values
    count = len(values)
    if set(unknown) == {count} and set(values) == set(range(count)):
        shifted = {value + 1: label for value, label in values.items()}
        from_one = f"labels: {labels_as_yaml(shifted, hierarchy)}"
        if not found.get(0):
            return f"The values start at 1, the labels at 0: write {from_one}."
        return f"If 0 means unlabeled, write {from_one} and ignore: 0. Otherwise add the label of {count}."
    section = hierarchy.section
    if set(found) == {0, _WHITE} and set(unknown) == {_WHITE} and count == 2 and 0 in values:
        other = next(label for value, label in values.items() if value)
        meant = {0: values[0], _WHITE: other}
        return (
            f"If these are binary masks, where {_WHITE} means {hierarchy.label_name(other)}, write labels: "
            f"{labels_as_yaml(meant, hierarchy)}."
        )
    add = f"add them to {section}.labels, or set {section}.ignore to the value of pixels to ignore."
    if len(unknown) > _MANY_VALUES:
        return (
            "So many different values may come from JPEG compression, interpolation or a picture; if so, export masks "
            f"of label values as PNG, without interpolation. Otherwise {add}"
        )
    return add.capitalize()


def channels_fix(finding: DataFinding) -> DataFinding:
    """Say how to fix masks with several channels, from what these look like.

    Args:
        finding: Any finding.

    Returns:
        One of the kind "mask_channels" with another `fix`; others as they are.
    """
    masks = [path for path in finding.files if path.is_file()]
    if finding.kind != "mask_channels" or not masks:
        return finding
    try:
        looks = [_look_of_channels(path) for path in _some(masks)]
    except DataError:
        return finding
    if all(look == "gray" for look in looks):
        return replace(finding, fix="All channels are equal: save one of them, as PNG.")
    if all(look == "painted" for look in looks):
        folder = os.path.commonpath([path.parent for path in masks])
        command = f"seghiero data convert colors {folder} OUT --config CFG"
        fix = f"They look painted in class colors: set classes.colors, and run `{command}`."
        return replace(finding, fix=fix)
    return finding


def labels_as_yaml(values: Mapping[int, int], hierarchy: Hierarchy, changed: int | None = None) -> str:
    """Write `classes.labels` as YAML.

    Args:
        values: Labels by mask value, as in `hierarchy.values`.
        hierarchy: The class tree.
        changed: A mask value to show in any case.

    Returns:
        For example "{0: sky, 1: road}"; of many labels the first six, `changed`, and "..." for the others.
    """
    shown: list[str] = []
    for position, value in enumerate(sorted(values)):
        if position < _LABELS_SHOWN or value == changed:
            entry = {value: _label_as_written(values[value], hierarchy)}
            text = yaml.safe_dump(entry, default_flow_style=True, allow_unicode=True, width=10_000)
            shown.append(text.strip()[1:-1])
        elif shown[-1] != "...":
            shown.append("...")
    return f"{{{', '.join(shown)}}}"


def look_swapped(images: Sequence[Path], masks: Sequence[Path], known: Collection[int] | None = None) -> bool:
    """Check whether images look like masks, and masks like color pictures.

    Args:
        images: What should be images; up to three are decoded.
        masks: What should be masks; likewise.
        known: The values that masks may have. Default: any.

    Returns:
        True where every image has one channel with few values, all of them known, and every mask has several channels
        with many colors.
    """
    if not images or not masks:
        return False
    try:
        return all(_looks_like_mask(path, known) for path in _some(images)) and all(
            _looks_like_picture(path) for path in _some(masks)
        )
    except DataError:
        return False


def _label_as_written(label: int, hierarchy: Hierarchy) -> str | list[str]:
    """The name of a label, or the names of a set, as `classes.labels` has them."""
    if label < len(hierarchy):
        return hierarchy.nodes[label]
    return [hierarchy.leaves[leaf] for leaf in hierarchy.sets[label - len(hierarchy)]]


def _some(paths: Sequence[Path]) -> Sequence[Path]:
    return paths[:: max(1, len(paths) // 3)][:3]


def _looks_like_mask(path: Path, known: Collection[int] | None) -> bool:
    with open_image(path) as image:
        if image.mode not in _ONE_CHANNEL or image.mode == "1":  # 1-bit images may be scanned documents
            return False
        values = np.unique(np.asarray(image))
        return len(values) <= _FEW_COLORS and (known is None or set(values.tolist()) <= set(known))


def _looks_like_picture(path: Path) -> bool:
    with open_image(path) as image:
        return image.mode not in _ONE_CHANNEL and _count_colors(image) > _FEW_COLORS


def _look_of_channels(path: Path) -> str:
    """ "gray" for equal channels, "painted" for few colors, else ""."""
    with open_image(path) as image:
        if image.mode not in ("RGB", "RGBA", "LA"):
            return ""
        channels = image.convert("RGB").split()
        if channels[0].tobytes() == channels[1].tobytes() == channels[2].tobytes():
            return "gray"
        return "painted" if _count_colors(image) <= _FEW_COLORS else ""


def _count_colors(image: Image.Image) -> int:
    rgb = np.asarray(image.convert("RGB"), dtype=np.uint32).reshape(-1, 3)
    return len(np.unique(rgb @ np.array([1 << 16, 1 << 8, 1], dtype=np.uint32)))
