"""What a run would take in memory and time, measured with a few of its own steps; nothing is written."""

from __future__ import annotations

import time
from typing import Any

import torch

from seghiero_core.config.schema import Config
from seghiero_core.data.loaders import batches
from seghiero_core.devices import is_out_of_memory, peak_memory_mib
from seghiero_core.errors import UsageError
from seghiero_core.evaluation.evaluate import evaluate
from seghiero_core.events import Notify, ignore_events
from seghiero_core.training.batch_size import out_of_memory_error, static_mib, trial_step
from seghiero_core.training.feature_cache import plan_features
from seghiero_core.training.freezing import set_training_mode
from seghiero_core.training.prepare import prepare
from seghiero_core.training.run import Run
from seghiero_core.training.run_folder import check_run_folder
from seghiero_core.training.state import ResumePoint
from seghiero_core.training.validation import explained_out_of_memory


def dry_run(
    config: Config, *, resume: bool = False, force: bool = False, notify: Notify = ignore_events
) -> dict[str, Any]:
    """Build everything that `train` would, then run a step to warm up, one that is timed, and one of validation.

    Args:
        config: The config of the run.
        resume: As for `train`.
        force: As for `train`.
        notify: Receives the events of `prepare`, and a warning where `train` would refuse the run folder.

    Returns:
        "device", "precision", "processes", "batch_size" and "val_batch_size" (per process), "parameters", "memory_mib"
        (the parts of `static_mib`, and "peak"), "features_mib" (stored on the disk), "epochs", "steps_per_epoch",
        "seconds_per_step" (data included), "seconds_per_epoch" (validations and the storing of features included) and
        "seconds" of the whole run.

    Raises:
        SeghieroError: Whatever `train` would raise before and in its first step, except for the run folder.
    """
    folder = config.run_dir.resolve()
    try:
        check_run_folder(folder, resume=resume, force=force)
    except UsageError as error:
        notify({"event": "warning", "text": f"train would stop here: {error}"})
    point = ResumePoint.find(folder) if resume else ResumePoint(folder)
    point.check_model(config)
    run = prepare(point.config_to_resume(config), notify, load_weights=point.checkpoint is None)
    try:
        return _measure(run)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        model = run.accelerator.unwrap_model(run.model)
        raise out_of_memory_error(run.config, model, run.accelerator.device) from error


def _measure(run: Run) -> dict[str, Any]:
    training, accelerator = run.config.training, run.accelerator
    cache = plan_features(run, 0)
    set_training_mode(run.model, freeze_norm=training.freeze_norm)
    run.sampler.start_epoch(0)
    loading = iter(batches(run.train_loader))
    first = next(loading)
    seconds = per_stored_batch = 0.0
    for _ in range(2):
        started = time.perf_counter()
        inputs, target = run.to_device(next(loading, first), divide=cache is not None)
        if cache:  # all up to here is done before the first step, once for each image and variant
            per_stored_batch, started = time.perf_counter() - started, time.perf_counter()
        trial_step(run.model, run.loss, run.optimizer, inputs, target, accelerator)
        if accelerator.device.type == "cuda":
            torch.cuda.synchronize(accelerator.device)
        seconds = time.perf_counter() - started
    per_step = seconds * min(training.gradient_accumulation, len(run.train_loader))

    started = time.perf_counter()
    batch = next(iter(batches(run.val_loader)), None)  # None where there are fewer images than processes
    with explained_out_of_memory(run):
        evaluate(
            run.evaluated_model(),
            [batch] if batch else [],
            run.hierarchy,
            accelerator=accelerator,
            scores=run.loss.scores,
            limit=run.val_limit,
        )
    per_validation = (time.perf_counter() - started) * len(run.val_loader)

    validations = -(-training.epochs // training.validate_every)
    total = per_step * run.total_steps + per_validation * validations
    if cache:
        total += per_stored_batch * cache.samples / (len(first["index"]) * accelerator.num_processes)
    model = accelerator.unwrap_model(run.model)
    memory = static_mib(model, ema=bool(training.ema), optimizer=training.optimizer)
    memory["peak"] = peak_memory_mib(accelerator.device)
    return {
        "device": str(accelerator.device),
        "precision": run.precision,
        "processes": accelerator.num_processes,
        "batch_size": training.batch_size,
        "val_batch_size": run.val_limit.images,
        "parameters": sum(p.numel() for p in model.parameters()),
        "memory_mib": memory,
        "features_mib": cache.describe()["mib"] if cache else 0.0,
        "epochs": training.epochs,
        "steps_per_epoch": run.steps_per_epoch,
        "seconds_per_step": per_step,
        "seconds_per_epoch": total / training.epochs,
        "seconds": total,
    }
