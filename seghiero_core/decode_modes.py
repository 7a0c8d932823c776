"""What is known of decoding without torch: the modes, what may be asked for, and what files hold for no class."""

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
    """How logits become classes: one of MODES, and the threshold to back off from, if any."""

    mode: str = "leaf"
    confidence: float | None = None


def check_decoding(mode: str, confidence: float | None = None) -> None:
    """Raise UsageError for a `mode` that is none of MODES, or a `confidence` that is no threshold in 0..1."""
    if mode not in MODES:
        raise UsageError(f"there is no decoding '{mode}'.{nearest(mode, MODES)} Known: {', '.join(MODES)}.")
    if confidence is not None and not 0 <= confidence <= 1:  # written so that a NaN fails
        raise UsageError(f"--confidence {confidence}: is no threshold; give a number from 0 to 1.")


def undecided_id(hierarchy: Hierarchy) -> int:
    """What written ids hold where a prediction backed off to a coarser level: the ignore value of the classes.

    Written ids are class numbers, in 8 bits where all levels have at most 255 classes, else in 16. Where the ignore
    value is also a class number or doesn't fit, it is the greatest number that does: 255 or 65535.
    """
    classes = max(len(level.nodes) for level in hierarchy.levels)
    greatest = 255 if classes <= 255 else 65535
    return hierarchy.ignore if classes <= hierarchy.ignore <= greatest else greatest
