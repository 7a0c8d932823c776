"""Measures of a whole set, level by level."""

from seghiero_core.metrics.metrics import Metrics

__all__ = ["Metrics"]
