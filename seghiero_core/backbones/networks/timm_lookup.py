"""Look up what is known about a model of timm: found once per version of timm, and kept in the user's cache.

A table shipped with seghiero would fit one version of timm only, and looking at all its models takes many minutes. One
model takes a second or two. Reading a known one imports neither torch nor timm.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, fields
from functools import cache
from importlib.metadata import version
from pathlib import Path

from seghiero_core.atomic import replacing
from seghiero_core.backbones.networks.timm_facts import TimmFacts
from seghiero_core.errors import DeviceError, UsageError
from seghiero_core.version import __version__


def timm_facts(variant: str) -> TimmFacts:
    """Look up a model of timm, in the cache or by building it on the meta device.

    Args:
        variant: Its name, without a tag.

    Returns:
        The facts; `refused` is set if it can't be a backbone.

    Raises:
        UsageError: When timm has no such model.
    """
    return known_facts(variant) or _find_facts(variant)


@cache
def _find_facts(variant: str) -> TimmFacts:
    from seghiero_core.backbones.networks.timm_probe import probe

    facts = probe(variant)
    if path := _cached_file(variant):
        # A folder that can't be written costs time, nothing else.
        with suppress(OSError, DeviceError, UsageError), replacing(path) as temporary:
            temporary.write_text(json.dumps(asdict(facts)), encoding="utf-8")
    return facts


def known_facts(variant: str) -> TimmFacts | None:
    """Look up a model of timm in the cache.

    Args:
        variant: Its name, without a tag.

    Returns:
        The facts, or None if the cache has none.
    """
    path = _cached_file(variant)
    try:
        values = json.loads(path.read_text(encoding="utf-8")) if path else {}
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        return TimmFacts(**values) if values.keys() == {field.name for field in fields(TimmFacts)} else None
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _cached_file(variant: str) -> Path | None:
    """The file with the facts of a model, which may not exist; None where caches are turned off."""
    folder = os.environ.get("SEGHIERO_CACHE")
    if folder == "off" or not variant.isidentifier():
        return None
    if not folder:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "seghiero"
    return Path(folder).absolute() / f"timm-{version('timm')}-seghiero-{__version__}" / f"{variant}.json"
