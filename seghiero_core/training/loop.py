"""Training: the loop, written out from top to bottom.

`train` returns plain values and reports what happens by calling `notify(event)`. Each event is a dict whose key "event"
is data, download, weights, start, step, validation, warning or end. The records of steps and validations are also
appended to metrics.jsonl in the run folder.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from seghiero_core.config.schema import Config
from seghiero_core.data.loaders import batches
from seghiero_core.devices import any_process, mean_over_processes, peak_memory_mib
from seghiero_core.evaluate import evaluate, summary
from seghiero_core.events import Notify, ignore_events
from seghiero_core.figures import prediction_grid
from seghiero_core.training.bad_steps import MicroBatch, copy_buffers, count_bad_step, is_bad_step, restore_buffers
from seghiero_core.training.freezing import set_training_mode
from seghiero_core.training.interrupts import Interrupted, StopSignal
from seghiero_core.training.optimizer import lr_factor, set_lr
from seghiero_core.training.progress import TrainingProgress
from seghiero_core.training.run import Run, prepare
from seghiero_core.training.run_folder import check_run_folder, lock_run_folder
from seghiero_core.training.saver import Saver
from seghiero_core.training.state import ResumePoint, resume_run
from seghiero_core.training.trackers import start_trackers, track
from seghiero_core.version import __version__


def train(
    config: Config, *, resume: bool = False, force: bool = False, notify: Notify = ignore_events
) -> dict[str, Any]:
    """Train the network of a config.

    The run folder `output.dir/output.name` gets config.yaml, metrics.jsonl, validation.png, checkpoints with the links
    `best` and `last`, and weights.json, which lists what was loaded to start from. An error after the first step leaves
    a checkpoint to continue from.

    Args:
        config: The config of the run.
        resume: Continue the run from its newest intact checkpoint; without one, start from scratch with a warning.
        force: Overwrite a run that is there.
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
    folder = config.run_dir
    check_run_folder(folder, resume=resume, force=force)
    point = ResumePoint.find(folder) if resume else ResumePoint(folder)
    run = prepare(point.config_to_resume(config), notify, load_weights=point.checkpoint is None)
    if not run.accelerator.is_main_process:
        return _train(run, point, resume, ignore_events)
    with lock_run_folder(folder, resume=resume, force=force):
        if resume:
            point.check_unchanged()
        return _train(run, point, resume, notify)


def _train(run: Run, point: ResumePoint, resume: bool, notify: Notify) -> dict[str, Any]:
    training, accelerator, folder = run.config.training, run.accelerator, point.folder
    accelerator.wait_for_everyone()  # until the main process has locked the folder
    progress = resume_run(run, point, notify) if resume else None
    if progress is None:
        progress = TrainingProgress(images_per_step=run.images_per_step, steps_per_epoch=run.steps_per_epoch)
    if accelerator.is_main_process:
        (folder / "config.yaml").write_text(run.config.to_yaml())
        if run.weights:
            (folder / "weights.json").write_text(json.dumps(run.weights, indent=1))
    accelerator.wait_for_everyone()
    start_trackers(accelerator, run.config)
    notify(_start_event(run, folder, progress))

    record: dict[str, Any] = {}
    passes: list[MicroBatch] = []  # the forward passes of the current step
    saver = Saver(run, folder, progress)
    with saver.rescue(passes), StopSignal() as stop:
        for epoch in range(progress.epoch, training.epochs):
            # ── one epoch ────────────────────────────────────────────────────────────────────────────────────────
            progress.epoch = epoch
            done_here = progress.step - epoch * run.steps_per_epoch
            run.sampler.start_epoch(epoch, start=done_here * run.images_per_step)
            set_training_mode(run.model, freeze_norm=training.freeze_norm)
            started = time.perf_counter()
            for batch in batches(run.train_loader):
                # ── one step: forward, loss, backward, update ────────────────────────────────────────────────────
                if not passes:
                    buffers = copy_buffers(run.model)
                with accelerator.accumulate(run.model):
                    images = batch["image"]
                    if training.channels_last:
                        images = images.contiguous(memory_format=torch.channels_last)
                    output = run.model(images)
                    total, terms = run.loss(
                        output.logits,
                        batch["target"],
                        embedding=output.embedding,
                        fraction=progress.step / run.total_steps,
                        auxiliary_logits=output.auxiliary_logits,
                    )
                    passes.append(MicroBatch(batch["index"], terms))
                    accelerator.backward(total)
                    if not accelerator.sync_gradients:
                        continue
                    norm = _gradient_norm(run, training.clip_norm)
                    factor = lr_factor(progress.step, run.total_steps, warmup=training.warmup, power=training.power)
                    set_lr(run.optimizer, factor)
                    (bad,) = any_process(accelerator, is_bad_step(run, passes, norm))
                    if bad:
                        restore_buffers(run.model, buffers)
                        count_bad_step(run, folder, progress, passes, notify)
                        run.optimizer.zero_grad()  # without gradients the optimizer changes nothing
                    run.optimizer.step()
                    run.optimizer.zero_grad()
                if run.average and not bad and not accelerator.optimizer_step_was_skipped:
                    run.average.update(accelerator.unwrap_model(run.model))
                progress.step += 1
                passes.clear()
                seconds, started = time.perf_counter() - started, time.perf_counter()
                # ── report, and save or stop where asked to ──────────────────────────────────────────────────────
                means = mean_over_processes(accelerator, {"loss": total, **terms})
                record = {
                    "event": "step",
                    "step": progress.step,
                    "epoch": epoch,
                    "loss": means.pop("loss"),
                    "terms": means,
                    "lr": training.lr * factor,
                    "grad_norm": norm,
                    "seconds": seconds,  # of the whole step, waiting for its data included
                    "images": run.images_per_step,
                    "memory_mib": peak_memory_mib(accelerator.device),
                }
                _record(run, folder, record, notify)
                stopping, due = any_process(accelerator, stop.requested, saver.due())
                if stopping or due:
                    saver.save()
                if stopping:
                    raise Interrupted(f"stopped at step {progress.step} of {run.total_steps}; continue with --resume.")
            # ── validation and checkpoint at the end of the epoch ────────────────────────────────────────────────
            if not run.validates_after(progress.step):
                continue
            evaluation = evaluate(
                run.evaluated_model(),
                run.val_loader,
                run.hierarchy,
                accelerator=accelerator,
                scores=run.loss.scores,
                num_examples=4,
                stop=lambda: stop.requested,
            )
            if evaluation.stopped:
                saver.save()
                raise Interrupted(f"stopped in the validation after step {progress.step}; --resume repeats it.")
            metrics = summary(evaluation.metrics)
            value = _monitored(metrics, training.monitor)
            best = progress.best is None or value > progress.best
            if best:
                progress.best, progress.best_step = value, progress.step
            progress.epoch = epoch + 1
            record = {"event": "validation", "step": progress.step, "epoch": epoch, "best": best, "metrics": metrics}
            _record(run, folder, record, notify)
            if accelerator.is_main_process:
                prediction_grid(*zip(*evaluation.examples, strict=True), run.hierarchy).save(folder / "validation.png")
            saver.save(metrics | {"epoch": epoch}, best=best)
    accelerator.end_training()
    notify({"event": "end", "folder": folder, "best": progress.best, "monitor": training.monitor})
    # A run that was complete before has made no record now.
    return record or json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])


def _gradient_norm(run: Run, clip_norm: float | None) -> float:
    parameters = [p for p in run.model.parameters() if p.grad is not None]
    if clip_norm:
        norm = run.accelerator.clip_grad_norm_(parameters, clip_norm)
    else:
        run.accelerator.unscale_gradients()
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def _monitored(metrics: dict[str, Any], monitor: str) -> float:
    value = metrics["mean_miou"]
    if monitor != "mean_miou":
        value = next(level["miou"] for level in metrics["levels"] if level["name"] == monitor)
    return -1.0 if value is None else value


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


def _record(run: Run, folder: Path, record: dict[str, Any], notify: Notify) -> None:
    """Append a record to metrics.jsonl, and hand it to the trackers and to `notify`."""
    if run.accelerator.is_main_process:
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(_without_nan(record)) + "\n")
    track(run.accelerator, record)
    notify(record)


def _without_nan(value: Any) -> Any:
    """Replace numbers that are not finite, which JSON doesn't have, by None."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
