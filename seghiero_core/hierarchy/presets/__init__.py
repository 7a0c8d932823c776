"""Class trees of public data sets: one YAML file each, with labels, tree, ignore value, colors and source."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from seghiero_core.errors import UsageError, nearest

_FOLDER = files("seghiero_core.hierarchy") / "presets"


def preset_names() -> list[str]:
    """List the names that `classes.preset` takes.

    Returns:
        Sorted names.
    """
    return sorted(file.name.removesuffix(".yaml") for file in _FOLDER.iterdir() if file.name.endswith(".yaml"))


@cache
def read_preset(name: str) -> Mapping[str, Any]:
    """Read the file of a preset.

    Args:
        name: One of `preset_names()`.

    Returns:
        The keys of a `classes` section, and `source`. Calls share it, so it must not be changed.

    Raises:
        UsageError: When the name is unknown.
    """
    names = preset_names()
    if name not in names:
        raise UsageError(f"unknown preset '{name}'.{nearest(name, names)} Known: {', '.join(names)}.")
    return yaml.safe_load((_FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))


def expand_preset(section: Any) -> Any:
    """Replace the `preset` of a `classes` section by the keys that it stands for.

    Args:
        section: The section. Its other keys win over the preset's, each as a whole.

    Returns:
        The expanded section. One without `preset`, or anything that isn't a mapping, is returned as it is.

    Raises:
        UsageError: When the preset is unknown.
    """
    if not isinstance(section, Mapping) or section.get("preset") is None:
        return section
    given = {key: value for key, value in section.items() if key != "preset"}
    preset = read_preset(str(section["preset"]))
    return {key: value for key, value in preset.items() if key != "source"} | given
