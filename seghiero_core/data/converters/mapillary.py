"""Mapillary Vistas v1.2 and v2.0: label masks whose values are positions in the labels of config_*.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seghiero_core.data.converters.classes import IGNORE, checked_name, tree_of
from seghiero_core.data.converters.conversion import Conversion, Options, get, load_json
from seghiero_core.data.converters.image_files import ImageFolder, items_of_masks
from seghiero_core.errors import DataError, UsageError
from seghiero_core.hierarchy.presets import read_preset

_CONFIGS = ("config_v2.0.json", "config_v1.2.json", "config.json")
_SPLITS = ("training", "validation")
_PRESET = "mapillary-v2"


def read_mapillary(source: Path, options: Options) -> Conversion:
    """Find the label masks of a version of the data set.

    Args:
        source: The folder of the data set, whose newest version is taken, or the config_*.json of a version in it.
        options: What the user chose.

    Returns:
        The images, with the classes of the preset mapillary-v2, or those of another config.

    Raises:
        UsageError: When the folder has no config or no label masks.
        DataError: When the config is damaged.
    """
    configs = [source] if source.is_file() else [source / name for name in _CONFIGS if (source / name).is_file()]
    if not configs:
        raise UsageError(f"{source} has none of {', '.join(_CONFIGS)}; give the folder of Mapillary Vistas.")
    config = configs[0]
    root, version = config.parent, config.stem.partition("_")[2]
    classes, table = _classes(config)
    items, faults = [], []
    for split in _SPLITS:
        folders = [root / split / version / "labels", root / split / "labels"]
        folder = next((each for each in folders if each.is_dir()), None)
        if folder is None:
            raise UsageError(f"{folders[0]} is missing; extract the labels there, as published.")
        images = ImageFolder(options.images or root / split / "images", option=options.images is not None)
        found, missing = items_of_masks(folder, root, images, table)
        items += found
        faults += missing
    return Conversion(items, classes, faults)


def _classes(config: Path) -> tuple[dict[str, Any], dict[int, int]]:
    """The `classes` section, and the new value of each mask value."""
    labels = get(load_json(config), "labels", list, str(config))
    names, groups, colors = {}, {}, {}
    for position, label in enumerate(labels):
        where = f"{config}, labels {position}"
        names[position] = checked_name(get(label, "readable", str, where), where)
        groups[position] = get(label, "name", str, where).split("--")[:-1]
        colors[position] = get(label, "color", list, where)
    preset = read_preset(_PRESET)
    if names == preset["labels"]:
        return {"preset": _PRESET}, {value: value for value in names}
    # Labels that aren't evaluated, such as Unlabeled in v1.2, are ignored.
    kept = {value: name for value, name in names.items() if labels[value].get("evaluate", True)}
    if len(set(kept.values())) < len(kept):
        name = next(name for name in kept.values() if list(kept.values()).count(name) > 1)
        raise DataError(f"{config}: two labels are called '{name}'; rename one of them.")
    if any(value >= IGNORE for value in kept):
        raise DataError(f"{config} has {len(labels)} labels; 8-bit masks have room for {IGNORE}.")
    section = {"labels": kept, "tree": _tree(kept, groups), "ignore": IGNORE}
    section["colors"] = {name: list(colors[value]) for value, name in kept.items()}
    table = {value: value if value in kept else IGNORE for value in names} | {IGNORE: IGNORE}
    return {key: each for key, each in section.items() if each is not None}, table


def _tree(names: Mapping[int, str], groups: Mapping[int, list[str]]) -> dict[str, Any] | None:
    """The tree of the prefixes of names, "construction--barrier--curb". A group may have the name of a label."""
    parents: dict[str, str] = {}
    taken = {name.lower() for name in names.values()}
    for value, name in names.items():
        path = [f"{group} (group)" if group.lower() in taken else group for group in groups[value]]
        for child, parent in zip([name, *reversed(path)], [*reversed(path), ""], strict=True):
            if parent:
                parents[child] = parent
    return tree_of(list(names.values()), parents)
