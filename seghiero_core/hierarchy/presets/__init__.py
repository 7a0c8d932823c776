"""Class trees of public data sets: one YAML file each in `presets/`, with labels, tree, ignore, colors and source."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from seghiero_core.errors import UsageError, nearest

FOLDER = files("seghiero_core.hierarchy") / "presets"


def preset_names() -> list[str]:
    """The names that `classes.preset` takes, sorted."""
    return sorted(file.name.removesuffix(".yaml") for file in FOLDER.iterdir() if file.name.endswith(".yaml"))


@cache
def read_preset(name: str) -> Mapping[str, Any]:
    """The file of a preset: the keys of a `classes` section, and `source`. Shared between calls: don't change it.

    Raises UsageError for an unknown name.
    """
    names = preset_names()
    if name not in names:
        raise UsageError(f"there is no preset '{name}'.{nearest(name, names)} Known: {', '.join(names)}.")
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))


def expand_preset(section: Any) -> Any:
    """A `classes` section with `preset` replaced by what the preset says; keys given beside it win, each as a whole.

    A section without `preset` (or that is no mapping) comes back as it is. Raises UsageError for an unknown name.
    """
    if not isinstance(section, Mapping) or section.get("preset") is None:
        return section
    given = {key: value for key, value in section.items() if key != "preset"}
    preset = read_preset(str(section["preset"]))
    return {key: value for key, value in preset.items() if key != "source"} | given
