"""Help texts of options that several commands share."""

from __future__ import annotations

from seghiero_core.decode_modes import MODES

CHECKPOINT_HELP = "A run, a checkpoint, or the config of a run. Default: the newest run."
"""Help of the argument CHECKPOINT."""
CONFIG_HELP = "Use the data set of this config; it must have the same classes."
"""Help of --config."""
SET_HELP = "Override a key of the run's config, such as dataset.root; repeatable."
"""Help of --set for a trained checkpoint."""
DECODE_HELP = f"How logits become classes: {', '.join(MODES)}. See docs/api.md."
"""Help of --decode."""
CONFIDENCE_HELP = "Back off to the deepest class with at least this probability (0..1)."
"""Help of --confidence."""
DEVICE_HELP = "auto, cpu, cuda, cuda:N or mps."
"""Help of --device."""
