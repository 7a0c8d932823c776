"""Steps whose loss or gradient is not finite: skipped, counted, and reported with what went wrong first."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather_object
from torch import nn

from seghiero_core.errors import DeviceError
from seghiero_core.events import Notify
from seghiero_core.run_files import write_listed
from seghiero_core.training.progress import BadStep, TrainingProgress
from seghiero_core.training.run import Run

_MIN_SCALE = 1.0
"""A gradient scaler that has halved its scale down to here no longer searches for it: the gradients are bad."""


class MicroBatch(NamedTuple):
    """One forward pass of a step.

    Attributes:
        indices: B, positions of the samples in the training set.
        terms: The loss terms, scalars.
    """

    indices: torch.Tensor
    terms: Mapping[str, torch.Tensor]


def is_bad_step(run: Run, passes: Sequence[MicroBatch], norm: float) -> bool:
    """Check whether this process finds that a step must be skipped and counted.

    With fp16 the gradient scaler finds its scale by steps whose gradients overflow, and skips those itself; they don't
    count.

    Args:
        run: The run.
        passes: The forward passes of the step.
        norm: The norm of its gradient.

    Returns:
        True where a loss term is not finite, or the gradient is not and the scaler can't be the reason.
    """
    if not all(math.isfinite(value.item()) for _, terms in passes for value in terms.values()):
        return True
    scaler = run.accelerator.scaler
    return not math.isfinite(norm) and (scaler is None or scaler.get_scale() <= _MIN_SCALE)


def copy_buffers(model: nn.Module) -> list[torch.Tensor]:
    """Copy the buffers of a model: a forward pass updates BatchNorm's running mean and variance even in a bad step.

    Args:
        model: Any module.

    Returns:
        A copy of each buffer, for `restore_buffers`.
    """
    return [buffer.clone() for buffer in model.buffers()]


def restore_buffers(model: nn.Module, copies: Sequence[torch.Tensor]) -> None:
    """Put back what `copy_buffers` returned.

    Args:
        model: The module that was copied from.
        copies: The copies.
    """
    for buffer, value in zip(model.buffers(), copies, strict=True):
        buffer.copy_(value)


def update_weights(run: Run) -> bool:
    """Take the optimizer's step, unless the gradient scaler of fp16 skips it.

    accelerate reports no skipped step of a fused optimizer, whose kernel skips it by itself. A scaler lowers its scale
    after exactly the steps that were skipped.

    Args:
        run: The run.

    Returns:
        False where the scaler skipped the step.
    """
    scaler = run.accelerator.scaler
    before = scaler.get_scale() if scaler else None
    run.optimizer.step()
    return scaler is None or scaler.get_scale() >= before


def count_bad_step(
    run: Run, folder: Path, progress: TrainingProgress, passes: Sequence[MicroBatch], notify: Notify
) -> None:
    """Count a skipped step; every process must call it.

    All skipped steps of a run count, those before a resume included.

    Args:
        run: The run.
        folder: The run folder, where bad_batch.json is written when the run is stopped.
        progress: The progress of the run, which is updated.
        passes: The forward passes of the step.
        notify: Receives a warning.

    Raises:
        DeviceError: When this is step number `training.max_bad_steps` of its kind.
    """
    limit = run.config.training.max_bad_steps
    batches = gather_object([_described(run, indices, terms) for indices, terms in passes])
    bad_terms = [name for batch in batches for name, value in batch["terms"].items() if not math.isfinite(value)]
    what = f"loss term {bad_terms[0]} is not finite" if bad_terms else "the gradient is not finite"
    bad_step = BadStep(progress.step + 1, what)  # counted from 1, as in metrics.jsonl
    first = progress.first_bad or bad_step
    progress.first_bad = first
    progress.bad_steps += 1
    if progress.bad_steps < limit:
        text = f"step {bad_step.step} was skipped: {what} ({progress.bad_steps} of {limit})."
        notify({"event": "warning", "text": text})
        return
    path = folder / "bad_batch.json"
    if run.accelerator.is_main_process:
        write_listed(folder, path.name, json.dumps(_document(bad_step, first, batches), indent=1))
    raise DeviceError(
        f"{what} at step {bad_step.step}, the last of {progress.bad_steps} skipped steps (training.max_bad_steps: "
        f"{limit}); first, at step {first.step}, {first.what}. The files of the batch are listed in {path}. "
        "Lower training.lr, set training.clip_norm: 1.0, or use training.precision: fp32."
    )


def _described(run: Run, indices: torch.Tensor, terms: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    samples = run.train_loader.dataset.samples
    return {
        "images": [str(samples[index].image) for index in indices.tolist()],
        "terms": {name: value.item() for name, value in terms.items()},
    }


def _document(bad_step: BadStep, first: BadStep, batches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the content of bad_batch.json; what is not finite is written as text, since JSON has no number for it."""
    described = []
    for batch in batches:
        terms = {name: value if math.isfinite(value) else str(value) for name, value in batch["terms"].items()}
        described.append({"images": batch["images"], "terms": terms})
    return {
        "step": bad_step.step,
        "what": bad_step.what,
        "first": {"step": first.step, "what": first.what},
        "batches": described,
    }
