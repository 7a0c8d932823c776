"""The part of decoding that needs no torch: the modes, their options, and the id that files hold for no class."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from seghiero_core.errors import UsageError, nearest

if TYPE_CHECKING:
    from seghiero_core.hierarchy.tree import Hierarchy

MODES = {
    "leaf": "the best leaf; every coarser level follows from it (coherent)",
    "per_level": "the best class of each level on its own (levels may disagree)",
    "top_down": "the best class of the coarsest level, then the best below it, and so on (coherent)",
    "best_path": "the leaf with the greatest product of scores along its path (coherent)",
    "best_path_sum": "the leaf with the greatest sum of scores along its path (coherent)",
    "best_path_min": "the leaf whose lowest score along its path is greatest (coherent)",
    "expected_cost": "the leaf with the least expected tree distance to the truth (coherent)",
}


class Decoding(NamedTuple):
    """How logits become classes.

    Attributes:
        mode: One of `MODES`.
        confidence: Predictions back off to a coarser class below this score, in 0..1. None: they don't.
    """

    mode: str = "leaf"
    confidence: float | None = None


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
