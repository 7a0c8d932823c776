"""Losses for class trees: one pure function each, `(logits, target, hierarchy, *, ignore_index=-1, ...)`.

`LOSSES` lists them. Each is an attribute of this package and imports torch only when it is first used, as do
`build_loss`, which adds up the losses of a config's `loss:` section, and `label_counts`.
"""

from __future__ import annotations

import importlib
from typing import Any

from seghiero_core.losses.catalog import DEFAULT_PRESET, LOSSES, PRESETS, LossEntry, Term, check_loss_section, terms_of
from seghiero_core.losses.class_weights import class_weights

_LAZY = {"HierarchicalLoss": "combine", "build_loss": "combine", "label_counts": "reductions"}

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
__all__ += [*_LAZY, *LOSSES]


def __getattr__(name: str) -> Any:
    if name in LOSSES:
        return LOSSES[name].load(name)
    if name in _LAZY:
        return getattr(importlib.import_module(f"seghiero_core.losses.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'seghiero_core.losses' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
