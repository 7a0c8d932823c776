"""Hierarchical semantic segmentation: the tree, the networks, the losses, the training loop and the measures."""

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
    """Import a public name when it is first used: `import seghiero_core` alone costs no import of torch."""
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'seghiero_core' has no attribute '{name}'")
