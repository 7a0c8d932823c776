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
        epoch: The epoch (from 0) that training is in, or continues with. After its last step it is still this one until
            the validation is done.
        best: The best value of `training.monitor` so far; None before there was one.
        best_step: The step of the checkpoint that `best` links to.
        validated_step: The step of the last validation.
        without_improvement: Validations since the best one.
        first_loss: The loss of the first step.
        diverged: Whether a loss far above it has been reported.
        bad_steps: Skipped steps so far.
        first_bad: The first of them.
    """

    images_per_step: int
    steps_per_epoch: int
    step: int = 0
    epoch: int = 0
    best: float | None = None
    best_step: int | None = None
    validated_step: int | None = None
    without_improvement: int = 0
    first_loss: float | None = None
    diverged: bool = False
    bad_steps: int = 0
    first_bad: BadStep | None = None

    def add_validation(self, metrics: Mapping[str, Any], monitor: str) -> bool:
        """Count a validation after the current step.

        A validation that could not measure the metric is no failure to improve: `without_improvement` stays, and `best`
        links to the last validated checkpoint.

        Args:
            metrics: What `evaluate.summary` returns.
            monitor: `training.monitor`.

        Returns:
            Whether the value is the best so far.
        """
        value = monitored(metrics, monitor)
        improved = value is not None and (self.best is None or value > self.best)
        if improved:
            self.best, self.without_improvement = value, 0
        elif value is not None:
            self.without_improvement += 1
        if improved or self.best is None:
            self.best_step = self.step
        self.epoch = self.step // self.steps_per_epoch
        self.validated_step = self.step
        return improved

    def has_stopped_early(self, early_stopping: int | None) -> bool:
        """Check whether `training.early_stopping` ends the run here.

        Args:
            early_stopping: The value of the key; None never ends a run.

        Returns:
            True after that many validations without a better value.
        """
        return early_stopping is not None and self.without_improvement >= early_stopping

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


def monitored(metrics: Mapping[str, Any], monitor: str) -> float | None:
    """Return the value that selects the best checkpoint.

    Args:
        metrics: What `evaluate.summary` returns.
        monitor: `training.monitor`: mean_miou, or the name of a level.

    Returns:
        An mIoU in 0..1, None where no pixel has a label to measure it by.
    """
    if monitor == "mean_miou":
        return metrics["mean_miou"]
    return next(level["miou"] for level in metrics["levels"] if level["name"] == monitor)
