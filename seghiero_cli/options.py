"""Help texts of the decoding options that `eval`, `predict` and `export` share."""

from __future__ import annotations

from seghiero_core.decode_modes import MODES

DECODE_HELP = "How logits become classes. " + " ".join(f"{mode}: {what}." for mode, what in MODES.items())
"""Help of --decode: every mode with its description."""
CONFIDENCE_HELP = "Back off to the deepest node with at least this probability (0..1); 0 never backs off."
"""Help of --confidence where nothing is written."""
CONFIDENCE_IN_MASKS_HELP = (
    f"{CONFIDENCE_HELP} Finer levels then hold the ignore value of the classes, or 255 if that is also a class "
    "number (65535 in 16-bit masks)."
)
"""Help of --confidence where masks are written."""
