"""How far a run has come: the part of its state that is plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class BadStep:
    """A skipped step.

    Attributes:
        step: Its number, from 0.
        what: What was not finite, as a clause: "the gradient is not finite".
    """

    step: int
    what: str


@dataclass
class TrainingProgress:
    """The counters of a run. The training loop updates them in place; a checkpoint keeps them in `training.json`.

    Attributes:
        images_per_step: Images in one optimizer step, over all processes and accumulated batches.
        steps_per_epoch: Optimizer steps in one epoch.
        step: Optimizer steps done, skipped ones included.
        epoch: The epoch (from 0) that training is in, or continues with.
        best: The best value of `training.monitor` so far.
        best_step: The step after which it was measured.
        bad_steps: Skipped steps so far.
        first_bad: The first of them.
    """

    images_per_step: int
    steps_per_epoch: int
    step: int = 0
    epoch: int = 0
    best: float | None = None
    best_step: int | None = None
    bad_steps: int = 0
    first_bad: BadStep | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the progress as plain values.

        Returns:
            The fields by name, `first_bad` as a dict or None.
        """
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TrainingProgress:
        """Read what `to_json` returned.

        Args:
            values: The fields by name. Keys that are not fields are ignored, and fields with a default may be absent:
                a checkpoint of an older version has fewer of them.

        Returns:
            The progress.
        """
        known = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        if known.get("first_bad"):
            known["first_bad"] = BadStep(**known["first_bad"])
        return cls(**known)
