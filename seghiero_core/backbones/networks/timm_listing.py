"""List models of timm as backbones: their strides, channels, parameters, and the weights that are published."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import timm

from seghiero_core.backbones.networks.timm_facts import TARGETS, TimmFacts
from seghiero_core.backbones.networks.timm_lookup import known_facts, timm_facts
from seghiero_core.backbones.timm_models import timm_tags
from seghiero_core.errors import UsageError, nearest
from seghiero_core.events import Notify, ignore_events


def list_timm(pattern: str, notify: Notify = ignore_events) -> Iterator[dict[str, Any]]:
    """List the models of timm whose names match a pattern.

    Args:
        pattern: A name with wildcards, such as "vit_*dinov3*".
        notify: Receives {"event": "probe", "variants"} before models are built that the cache doesn't know.

    Yields:
        A row for each model; those that can't be a backbone have "refused", the reason.

    Raises:
        UsageError: When no name matches.
    """
    names = timm.list_models(pattern)
    if not names:
        inside = timm.list_models(f"*{pattern}*")
        hint = f" '*{pattern}*' matches {len(inside)}." if inside else nearest(pattern.strip("*"), timm.list_models())
        raise UsageError(f"timm {timm.__version__} has no model that matches '{pattern}'.{hint}")
    if unknown := [name for name in names if known_facts(name) is None]:
        notify({"event": "probe", "variants": len(unknown)})
    for name in names:
        yield _row(timm_facts(name))


def _row(facts: TimmFacts) -> dict[str, Any]:
    tags = timm_tags(facts.variant)
    row = {
        "variant": facts.variant,
        "refused": facts.refused or None,
        "weights": {tag: timm.get_pretrained_cfg(tag).license for tag in tags},
    }
    if facts.refused:
        return row
    return row | {
        "channels": list(facts.channels),
        "strides": list(TARGETS),
        "network_strides": list(facts.own_strides),
        "network_channels": list(facts.widths),
        "parameters": facts.parameters,
        "plain": facts.plain,
        "windows": facts.inner if facts.windows else None,
    }
