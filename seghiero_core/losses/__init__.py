"""Losses for class trees: one pure function each, `(logits, target, hierarchy, *, ignore_index=-1, ...)`.

`LOSSES` lists them. Each is an attribute of this package and imports torch only when it is first used, as does
`build_loss`, which adds up the losses of a config's `loss:` section.
"""

from __future__ import annotations

from typing import Any

from seghiero_core.losses.catalog import DEFAULT_PRESET, LOSSES, PRESETS, LossEntry, Term, check_loss_section, terms_of
from seghiero_core.losses.class_weights import class_weights

_COMBINE = ("HierarchicalLoss", "build_loss")

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
__all__ += [*_COMBINE, *LOSSES]


def __getattr__(name: str) -> Any:
    if name in LOSSES:
        return LOSSES[name].load(name)
    if name in _COMBINE:
        from seghiero_core.losses import combine

        return getattr(combine, name)
    raise AttributeError(f"module 'seghiero_core.losses' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
