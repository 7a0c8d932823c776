"""What differs between configs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml


def config_differences(texts: Sequence[str]) -> list[tuple[str, list[str | None]]]:
    """Compare configs key by key.

    Args:
        texts: The YAML of each.

    Returns:
        The keys whose values aren't all equal, as dotted paths in the order of the configs; and the value of each
        config as JSON, or None where it lacks the key. Lists are compared whole.
    """
    values = [dict(_leaves(yaml.safe_load(text) or {}, "")) for text in texts]
    keys = dict.fromkeys(key for config in values for key in config)
    rows = [(key, [config.get(key) for config in values]) for key in keys]
    return [(key, row) for key, row in rows if len(set(row)) > 1]


def _leaves(value: Any, path: str) -> list[tuple[str, str]]:
    """The values in nested mappings as JSON, by dotted path."""
    if isinstance(value, Mapping) and value:
        return [pair for key, item in value.items() for pair in _leaves(item, f"{path}.{key}" if path else str(key))]
    return [(path, json.dumps(value, ensure_ascii=False, default=str))]
