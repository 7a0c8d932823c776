"""Hierarchical semantic segmentation: class trees, networks, losses, training and metrics."""

from __future__ import annotations

import importlib
from typing import Any

from seghiero_core.version import __version__

_MODULES = {
    "Hierarchy": "seghiero_core.hierarchy",
    "Metrics": "seghiero_core.metrics",
    "load": "seghiero_core.predict.loading",
}

__all__ = ["Hierarchy", "Metrics", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import seghiero_core` alone doesn't import torch."""
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'seghiero_core' has no attribute '{name}'")


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted({*globals(), *__all__})
