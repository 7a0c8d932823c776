"""The part of decoding that needs no torch: the modes, their options, and the id that files hold for no class."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from seghiero_core.errors import UsageError, nearest

if TYPE_CHECKING:
    from seghiero_core.hierarchy.tree import Hierarchy

MODES = ("leaf", "per_level", "top_down", "best_path", "best_path_sum", "best_path_min", "expected_cost")
"""How logits can become classes; docs/api.md describes each."""


class Decoding(NamedTuple):
    """How logits become classes.

    Attributes:
        mode: One of `MODES`.
        confidence: Predictions back off to a coarser class below this score, in 0..1. None: they don't.
    """

    mode: str
    confidence: float | None = None


DEFAULT_DECODING = Decoding("leaf")
"""The decoding of everything that isn't given another: validation in training, eval, predict and export."""
DEFAULT_BACK_OFF_MODE = "top_down"
"""The mode of pseudo-labels, which always have a threshold: above one half, only this mode surely finds the deepest
class that reaches it (see `decode.back_off`)."""


def check_decoding(mode: str, confidence: float | None = None) -> None:
    """Check a mode and a threshold that a user gave.

    Args:
        mode: Should be one of `MODES`.
        confidence: Should be in 0..1, or None.

    Raises:
        UsageError: When one of them is wrong.
    """
    if mode not in MODES:
        raise UsageError(f"unknown decoding '{mode}'.{nearest(mode, MODES)} Known: {', '.join(MODES)}.")
    if confidence is not None and not 0 <= confidence <= 1:  # written so that a NaN fails
        raise UsageError(f"confidence {confidence}: must be a number from 0 to 1.")


def undecided_id(hierarchy: Hierarchy) -> int:
    """Return the id that files hold where a prediction backed off to a coarser level.

    Files hold class numbers, in 8 bits if every level has at most 255 classes and in 16 bits otherwise.

    Args:
        hierarchy: The class tree.

    Returns:
        The ignore value of the classes; or the largest number that fits (255 or 65535) if the ignore value doesn't fit
        or is also a class number.
    """
    classes = max(len(level.nodes) for level in hierarchy.levels)
    largest = 255 if classes <= 255 else 65535
    return hierarchy.ignore if classes <= hierarchy.ignore <= largest else largest
