"""Steps whose numbers went wrong: skipped, counted, and told apart by what went wrong first."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn

from seghiero_core.errors import DeviceError
from seghiero_core.events import Notify
from seghiero_core.training.run import Run

MicroBatch = tuple[torch.Tensor, dict[str, torch.Tensor]]
"""The indices of a forward pass's samples (B), and its loss terms."""

LEAST_SCALE = 1.0
"""A gradient scaler that halved its scale down to here isn't looking for it any more: the gradients are bad."""


def is_bad(run: Run, passes: Sequence[MicroBatch], norm: float) -> bool:
    """Whether a step must be skipped and counted, as this process sees it.

    With fp16 the scaler finds its scale by steps whose gradients overflow, and skips those itself; they don't count.
    """
    if not all(math.isfinite(value.item()) for _, terms in passes for value in terms.values()):
        return True
    scaler = run.accelerator.scaler
    return not math.isfinite(norm) and (scaler is None or scaler.get_scale() <= LEAST_SCALE)


def statistics(model: nn.Module) -> list[torch.Tensor]:
    """Copies of the buffers, which a forward pass changes (BatchNorm's running statistics) even if its step is bad."""
    return [buffer.clone() for buffer in model.buffers()]


def restore_statistics(model: nn.Module, before: Sequence[torch.Tensor]) -> None:
    """Put back what `statistics` copied."""
    for buffer, value in zip(model.buffers(), before, strict=True):
        buffer.copy_(value)


def count_bad_step(
    run: Run, folder: Path, progress: dict[str, Any], passes: Sequence[MicroBatch], notify: Notify
) -> None:
    """Count a skipped step in `progress`; every process must call it.

    All skipped steps of a run count, those before a resume too. At `training.max_bad_steps` the batch of the last
    goes to bad_batch.json of the run folder, and DeviceError says what went wrong first.
    """
    step, most = progress["step"], run.config.training.max_bad_steps
    samples = run.train_loader.dataset.samples
    here = [
        {
            "images": [str(samples[index].image) for index in indices.tolist()],
            "terms": {name: value.item() for name, value in terms.items()},
        }
        for indices, terms in passes
    ]
    everywhere = gather_object(here)
    bad = [name for one in everywhere for name, value in one["terms"].items() if not math.isfinite(value)]
    what = f"loss term {bad[0]} is not finite" if bad else "the gradient is not finite"
    progress["bad_steps"] += 1
    progress["first_bad"] = progress["first_bad"] or {"step": step, "what": what}
    if progress["bad_steps"] < most:
        notify({"event": "warning", "text": f"step {step} was skipped: {what} ({progress['bad_steps']} of {most})."})
        return
    path = folder / "bad_batch.json"
    if run.accelerator.is_main_process:
        for one in everywhere:
            one["terms"] = {name: value if math.isfinite(value) else str(value) for name, value in one["terms"].items()}
        document = {"step": step, "what": what, "first": progress["first_bad"], "batches": everywhere}
        path.write_text(json.dumps(document, indent=1))
    first = progress["first_bad"]
    raise DeviceError(
        f"{what} at step {step}, the last of {progress['bad_steps']} skipped steps (training.max_bad_steps: {most}); "
        f"first, at step {first['step']}, {first['what']}. The batch's files are in {path}. "
        "Lower training.lr, set training.clip_norm: 1.0, or use training.precision: fp32."
    )
