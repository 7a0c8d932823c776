"""Training: the loop, written out from top to bottom.

`train` returns plain values and reports what happens by calling `notify(event)`. Each event is a dict whose key "event"
is data, download, weights, start, features, step, validating, validation, warning or end. The records of steps and
validations are also appended to metrics.jsonl in the run folder.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from torch.distributed.tensor import DTensor

from seghiero_core.config.schema import Config
from seghiero_core.data.loaders import batches
from seghiero_core.devices import any_process, peak_memory_mib, sum_over_processes
from seghiero_core.errors import SeghieroError, shorten
from seghiero_core.events import Notify, ignore_events
from seghiero_core.report.files import update_status
from seghiero_core.run_files import write_listed
from seghiero_core.training.bad_steps import (
    MicroBatch,
    copy_buffers,
    count_bad_step,
    is_bad_step,
    restore_buffers,
    update_weights,
)
from seghiero_core.training.environment import write_environment
from seghiero_core.training.feature_cache import plan_features
from seghiero_core.training.feature_filling import fill_features
from seghiero_core.training.freezing import set_training_mode
from seghiero_core.training.interrupts import Interrupted, StopSignal
from seghiero_core.training.optimizer import lr_factor, set_lr
from seghiero_core.training.prepare import prepare, start_accelerator
from seghiero_core.training.progress import TrainingProgress
from seghiero_core.training.records import last_record, write_record
from seghiero_core.training.run import Run
from seghiero_core.training.run_folder import begin_run, check_run_folder, lock_run_folder
from seghiero_core.training.saver import Saver
from seghiero_core.training.state import ResumePoint, resume_run
from seghiero_core.training.trackers import start_trackers
from seghiero_core.training.validation import validate
from seghiero_core.version import __version__

_DIVERGED = 1000
"""A loss that is larger than the first one (or than 1) by this factor isn't noise."""


def train(
    config: Config,
    *,
    resume: bool = False,
    force: bool = False,
    command: str | None = None,
    notify: Notify = ignore_events,
) -> dict[str, Any]:
    """Train the network of a config.

    The run folder `output.dir/output.name` gets config.yaml, environment.json, metrics.jsonl, checkpoints with the
    links `best` and `last`, weights.json, which lists what was loaded to start from, and, from the first validation on,
    report.html and validation.png. An error after the first step leaves a checkpoint to continue from.

    Args:
        config: The config of the run.
        resume: Continue the run from its newest intact checkpoint; without one, start from scratch with a warning.
        force: Overwrite a run that is there.
        command: The command line, for environment.json and the report.
        notify: Receives the events, in the main process only.

    Returns:
        The record of the last validation, or of the last step where none followed it.

    Raises:
        UsageError: When the folder holds a run and neither flag is given, or another process trains into it.
        DataError: When the data has faults; nothing has been written then.
        DeviceError: When the machine can't do what the config asks for, or too many steps were bad.
        CheckpointError: When the run can't be resumed because its checkpoints are damaged.
        Interrupted: After SIGINT or SIGTERM, when the state has been saved.
    """
    folder = config.run_dir.resolve()  # two names of a folder have one lock
    check_run_folder(folder, resume=resume, force=force)
    accelerator = start_accelerator(config)
    is_main = accelerator.is_main_process
    with lock_run_folder(folder, resume=resume, force=force) if is_main else nullcontext():
        accelerator.wait_for_everyone()  # until the main process has locked the folder
        point = ResumePoint.find(folder) if resume else ResumePoint(folder)
        point.check_model(config)
        run = prepare(point.config_to_resume(config), notify, accelerator, load_weights=point.checkpoint is None)
        if is_main and (kept := begin_run(folder, resume=resume)):
            text = f"{folder} keeps what seghiero didn't write: {shorten(kept, 5)}."
            notify({"event": "warning", "text": text})
        if is_main:
            write_environment(run, folder, command)
        try:
            return _train(run, point, resume, notify if is_main else ignore_events)
        except SeghieroError:
            if is_main:
                update_status(folder, "interrupted")
            raise


def _train(run: Run, point: ResumePoint, resume: bool, notify: Notify) -> dict[str, Any]:
    training, accelerator, folder = run.config.training, run.accelerator, point.folder
    progress = resume_run(run, point, notify) if resume else None
    if progress is None:
        progress = TrainingProgress(images_per_step=run.images_per_step, steps_per_epoch=run.steps_per_epoch)
    if accelerator.is_main_process:
        (folder / "config.yaml").write_text(run.config.to_yaml())
        if run.weights:
            write_listed(folder, "weights.json", json.dumps(run.weights, indent=1))
        if run.loss.class_weights is not None:
            weights = dict(zip(run.hierarchy.leaves, run.loss.class_weights.tolist(), strict=True))
            write_listed(folder, "class_weights.json", json.dumps(weights, indent=1))
        if resume:
            update_status(folder, "training", only_from="interrupted")
    accelerator.wait_for_everyone()
    start_trackers(accelerator, run.config)
    cache = plan_features(run, progress.epoch)
    notify(_start_event(run, folder, progress) | {"features": cache and cache.describe()})

    record: dict[str, Any] = {}
    passes: list[MicroBatch] = []  # the forward passes of the current step
    saver = Saver(run, folder, progress, point.checkpoint and point.checkpoint.folder)
    with saver.rescue(passes), StopSignal() as stop:
        if cache:
            fill_features(run, cache, stop, notify)
        for epoch in range(progress.epoch, training.epochs):
            # ── one epoch ────────────────────────────────────────────────────────────────────────────────────────
            if progress.has_stopped_early(training.early_stopping):
                break
            progress.epoch = epoch
            done_here = progress.step - epoch * run.steps_per_epoch
            run.sampler.start_epoch(epoch, start=done_here * run.images_per_step)
            set_training_mode(run.model, freeze_norm=training.freeze_norm)
            started = time.perf_counter()
            for micro_batches in _steps(run):
                # ── one step: forward, loss and backward of each of its batches, and the update ──────────────────
                counts = _label_counts(run, micro_batches)
                buffers = copy_buffers(run.model)
                _seed_step(run, progress.step)
                losses = []  # each batch's shares of those of the step, on the device
                for i, batch in enumerate(micro_batches, start=1):
                    inputs, target = run.to_device(batch)
                    with nullcontext() if i == len(micro_batches) else accelerator.no_sync(run.model):
                        output = run.model(*inputs, upsample=False)
                        total, terms = run.loss(
                            output.logits,
                            target,
                            stride=output.stride,
                            embedding=output.embedding,
                            fraction=progress.step / run.total_steps,
                            auxiliary_logits=output.auxiliary_logits,
                            auxiliary_stride=output.auxiliary_stride,
                            head_outputs=output.head_outputs,
                            counts=counts,
                        )
                        passes.append(MicroBatch(batch["index"], terms))
                        losses.append({"loss": total.detach(), **terms})
                        accelerator.backward(total * accelerator.num_processes)  # whose gradients are averaged
                    del output, total  # so that the next batch doesn't need memory for both
                norm = _gradient_norm(run, training.clip_norm)
                factor = lr_factor(progress.step, run.total_steps, training)
                set_lr(run.optimizer, factor)
                (bad,) = any_process(accelerator, is_bad_step(run, passes, norm))
                if bad:
                    restore_buffers(run.model, buffers)
                    count_bad_step(run, folder, progress, passes, notify)
                    run.optimizer.zero_grad()  # without gradients the optimizer changes nothing
                updated = update_weights(run)
                run.optimizer.zero_grad()
                if run.average and updated and not bad:
                    run.average.update(accelerator.unwrap_model(run.model))
                progress.step += 1
                shares = {name: torch.stack([each[name] for each in losses]).sum() for name in losses[0]}
                step_losses = sum_over_processes(accelerator, shares)
                count = sum(len(each.indices) for each in passes) * accelerator.num_processes
                passes.clear()
                seconds, started = time.perf_counter() - started, time.perf_counter()
                # ── report, and save or stop where asked to ──────────────────────────────────────────────────────
                record = {
                    "event": "step",
                    "step": progress.step,
                    "epoch": epoch + 1,
                    "loss": step_losses.pop("loss"),
                    "terms": step_losses,
                    "lr": training.lr * factor,
                    "grad_norm": norm,
                    "seconds": seconds,  # of the whole step, waiting for its data included
                    "images": count,
                    "memory_mib": peak_memory_mib(accelerator.device),
                }
                write_record(run, folder, record, notify)
                _warn_of_divergence(run, progress, record["loss"], notify)
                stopping, due = any_process(accelerator, stop.requested, saver.due())
                if stopping or due:
                    saver.save()
                if stopping:
                    raise Interrupted(f"stopped at step {progress.step} of {run.total_steps}; continue with --resume.")
            # ── validation at the end of the epoch, with a checkpoint before it ──────────────────────────────────
            if run.validates_after(progress.step):
                record = validate(run, folder, progress, saver, stop, notify)
    accelerator.end_training()
    notify(_end_event(run, folder, progress) | {"features": cache and cache.describe()})
    return record or last_record(folder)  # a run that was complete before has made no record now


def _steps(run: Run) -> Iterator[list[dict[str, torch.Tensor]]]:
    """Yield the batches of each step of an epoch, on the CPU; a set smaller than a step gives fewer."""
    loading = batches(run.train_loader)
    while micro_batches := list(islice(loading, run.config.training.gradient_accumulation)):
        yield micro_batches


def _label_counts(run: Run, micro_batches: Sequence[dict[str, torch.Tensor]]) -> torch.Tensor:
    """Return the label counts of all images of a step, those of other processes included."""
    own = torch.cat([batch["counts"] for batch in micro_batches])
    return run.accelerator.gather(own.to(run.accelerator.device))


def _seed_step(run: Run, step: int) -> None:
    """Seed the random generators by (seed, step, process): no two processes drop alike, and a resume is exact."""
    words = (run.config.training.seed, step, run.accelerator.process_index)
    set_seed(int(np.random.SeedSequence(words).generate_state(1)[0]))


def _gradient_norm(run: Run, clip_norm: float | None) -> float:
    parameters = [p for p in run.model.parameters() if p.grad is not None]
    if clip_norm:
        norm = run.accelerator.clip_grad_norm_(parameters, clip_norm)
    else:
        run.accelerator.unscale_gradients()
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def _warn_of_divergence(run: Run, progress: TrainingProgress, loss: float, notify: Notify) -> None:
    """Warn once in a run whose loss is far above that of its first step."""
    if not math.isfinite(loss):
        return  # a bad step, which is counted
    if progress.first_loss is None:
        progress.first_loss = loss
    if not progress.diverged and loss > _DIVERGED * max(1.0, progress.first_loss):
        progress.diverged = True
        text = (
            f"training diverges: the loss is {loss:.2g} after step {progress.step}, and was {progress.first_loss:.2g} "
            f"after the first. Lower training.lr ({run.config.training.lr:g}), or set training.clip_norm: 1.0."
        )
        notify({"event": "warning", "text": text})


def _start_event(run: Run, folder: Path, progress: TrainingProgress) -> dict[str, Any]:
    return {
        "event": "start",
        "folder": folder,
        "device": str(run.accelerator.device),
        "precision": run.precision,
        "processes": run.accelerator.num_processes,
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "backbone": run.config.backbone.model_dump(),
        "init_from": run.config.init_from,
        "head": run.config.head.model_dump(),
        "loss": list(run.loss.terms),
        "class_weights": None if run.loss.class_weights is None else run.loss.class_weights.tolist(),
        "leaves": run.hierarchy.leaves,
        "epochs": run.config.training.epochs,
        "steps_per_epoch": run.steps_per_epoch,
        "step": progress.step,
        "seghiero_version": __version__,
    }


def _end_event(run: Run, folder: Path, progress: TrainingProgress) -> dict[str, Any]:
    training = run.config.training
    return {
        "event": "end",
        "folder": folder,
        "step": progress.step,
        "epoch": progress.step // run.steps_per_epoch,
        "best": progress.best,
        "monitor": training.monitor,
        "early_stopping": training.early_stopping if progress.step < run.total_steps else None,
    }
