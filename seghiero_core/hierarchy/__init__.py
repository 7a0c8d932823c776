"""The class tree."""

from seghiero_core.hierarchy.tree import IGNORE_INDEX, Hierarchy, Level

__all__ = ["IGNORE_INDEX", "Hierarchy", "Level"]
