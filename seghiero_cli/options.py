"""What the options of decoding say; `eval`, `predict` and `export` have them."""

from __future__ import annotations

from seghiero_core.decode_modes import MODES

DECODE_HELP = "How logits become classes. " + " ".join(f"{mode}: {what}." for mode, what in MODES.items())
CONFIDENCE_HELP = "Back off to the deepest node that is at least this probable (0..1); 0 is never."
UNDECIDED_HELP = (
    f"{CONFIDENCE_HELP} Finer levels then hold the ignore value of the classes, or 255 where that is a class's number "
    "(65535 in 16-bit masks)."
)
