"""Importing the scripts of benchmarks/, which import each other by their plain names."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

from support.processes import ROOT


def script(name: str) -> ModuleType:
    """Import `benchmarks/NAME.py`; the folder is in `sys.path` only meanwhile."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
