"""Losses that know the tree: one pure function each, `(logits, target, hierarchy, *, ignore_index=255, ...)`.

`LOSSES` tells which there are. Their names are attributes of this package and import torch only when asked for, like
`build_loss`, which adds several up as the `loss:` section of a config says.
"""

from __future__ import annotations

from typing import Any

from seghiero_core.losses.catalog import DEFAULT_PRESET, LOSSES, PRESETS, LossEntry, Term, check_loss_section, terms_of
from seghiero_core.losses.class_weights import class_weights

__all__ = [
    "DEFAULT_PRESET",
    "LOSSES",
    "PRESETS",
    "LossEntry",
    "Term",
    "check_loss_section",
    "class_weights",
    "terms_of",
]


def __getattr__(name: str) -> Any:
    if name in LOSSES:
        return LOSSES[name].load(name)
    if name in ("build_loss", "HierarchicalLoss"):
        from seghiero_core.losses import combine

        return getattr(combine, name)
    raise AttributeError(f"module 'seghiero_core.losses' has no attribute '{name}'")
