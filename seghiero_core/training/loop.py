"""Training: what a run is made of, and the loop, written out from top to bottom.

`train` returns plain values and tells what happens through `notify(event)`; each event is a dict with a key "event":
data, download, weights, start, step, validation, warning, end. The records of steps and validations are
also appended to the run's metrics.jsonl.
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
from seghiero_core.training.bad_steps import count_bad_step, is_bad, restore_statistics, statistics
from seghiero_core.training.freezing import set_training_mode
from seghiero_core.training.interrupts import StopSignal
from seghiero_core.training.optimizer import lr_factor, set_lr
from seghiero_core.training.run import Run, prepare
from seghiero_core.training.run_folder import check_run_folder, claimed
from seghiero_core.training.saver import Saver
from seghiero_core.training.state import batch_size_of_run, resume_run
from seghiero_core.training.trackers import start_trackers, track
from seghiero_core.version import __version__


def train(config: Config, *, resume: bool = False, force: bool = False, notify: Notify = ignore_events) -> dict:
    """Train the network of `config` and return its last record.

    The run folder `output.dir/output.name` gets config.yaml, metrics.jsonl, checkpoints with the links `best` and
    `last`, validation.png, and weights.json with what was loaded to start from. Raises UsageError when the folder
    holds a run and neither `resume` nor `force` is given or another process trains into it, DataError or DeviceError
    before anything is written. An error later on leaves a checkpoint to go on from.
    """
    folder = config.run_dir
    check_run_folder(folder, resume=resume, force=force)
    run = prepare(batch_size_of_run(config) if resume else config, notify, resume=resume)
    if not run.accelerator.is_main_process:
        return _train(run, folder, resume, ignore_events)
    with claimed(folder, resume=resume, force=force):
        return _train(run, folder, resume, notify)


def _train(run: Run, folder: Path, resume: bool, notify: Notify) -> dict:
    training, accelerator = run.config.training, run.accelerator
    accelerator.wait_for_everyone()  # until the main process has the folder
    progress = {"step": 0, "epoch": 0, "best": None, "best_step": None, "bad_steps": 0, "first_bad": None}
    progress |= {"images_per_step": run.images_per_step, "steps_per_epoch": run.steps_per_epoch}
    if resume:
        progress = resume_run(run, folder, progress, notify)
    if accelerator.is_main_process:
        (folder / "config.yaml").write_text(run.config.to_yaml())
        if run.weights:
            (folder / "weights.json").write_text(json.dumps(run.weights, indent=1))
    accelerator.wait_for_everyone()
    start_trackers(accelerator, run.config)
    notify(_start_event(run, folder, progress))

    record: dict[str, Any] = {}
    passes: list[tuple[torch.Tensor, dict[str, torch.Tensor]]] = []  # of the step at work: sample indices, loss terms
    saver = Saver(run, folder, progress)
    step = progress["step"]
    with saver.rescue(passes), StopSignal() as stop:
        for epoch in range(progress["epoch"], training.epochs):
            # ── one epoch ────────────────────────────────────────────────────────────────────────────────────────
            done_here = step - epoch * run.steps_per_epoch
            run.sampler.start_epoch(epoch, start=done_here * run.images_per_step)
            set_training_mode(run.model, freeze_norm=training.freeze_norm)
            started = time.perf_counter()
            for batch in batches(run.train_loader):
                # ── one step: forward, loss, backward, update ────────────────────────────────────────────────────
                if not passes:
                    before = statistics(run.model)
                with accelerator.accumulate(run.model):
                    images = batch["image"]
                    if training.channels_last:
                        images = images.contiguous(memory_format=torch.channels_last)
                    output = run.model(images)
                    total, terms = run.loss(
                        output.logits,
                        output.embedding,
                        batch["target"],
                        step / run.total_steps,
                        output.auxiliary_logits,
                    )
                    passes.append((batch["index"], terms))
                    accelerator.backward(total)
                    if not accelerator.sync_gradients:
                        continue
                    norm = _gradient_norm(run, training.clip_norm)
                    factor = lr_factor(step, run.total_steps, warmup=training.warmup, power=training.power)
                    set_lr(run.optimizer, factor)
                    (bad,) = any_process(accelerator, is_bad(run, passes, norm))
                    if bad:
                        restore_statistics(run.model, before)
                        count_bad_step(run, folder, progress, passes, notify)
                        run.optimizer.zero_grad()  # without gradients the optimizer changes nothing
                    run.optimizer.step()
                    run.optimizer.zero_grad()
                if run.average and not bad and not accelerator.optimizer_step_was_skipped:
                    run.average.update(accelerator.unwrap_model(run.model))
                step += 1
                progress |= {"step": step, "epoch": epoch}
                passes.clear()
                seconds, started = time.perf_counter() - started, time.perf_counter()
                # ── what happened ────────────────────────────────────────────────────────────────────────────────
                means = mean_over_processes(accelerator, {"loss": total, **terms})
                record = {
                    "event": "step",
                    "step": step,
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
                stopping, due = any_process(accelerator, stop.requested, saver.due(step))
                if stopping or due:
                    saver.save()
                if stopping:
                    stop.leave(f"stopped at step {step} of {run.total_steps}; go on with --resume.")
            # ── validation and checkpoint at the end of the epoch ────────────────────────────────────────────────
            if not run.validates_after(step):
                continue
            counted, pictures, stopping = evaluate(
                run.evaluated_model(),
                run.val_loader,
                run.hierarchy,
                accelerator=accelerator,
                scores=run.loss.scores,
                keep=4,
                stop=lambda: stop.requested,
            )
            if stopping:
                saver.save()
                stop.leave(f"stopped in the validation after step {step}, which --resume makes again.")
            metrics = summary(counted)
            value = _monitored(metrics, training.monitor)
            best = progress["best"] is None or value > progress["best"]
            progress |= {"epoch": epoch + 1} | ({"best": value, "best_step": step} if best else {})
            record = {"event": "validation", "step": step, "epoch": epoch, "best": best, "metrics": metrics}
            _record(run, folder, record, notify)
            if accelerator.is_main_process:
                prediction_grid(*zip(*pictures, strict=True), run.hierarchy).save(folder / "validation.png")
            saver.save(metrics | {"epoch": epoch}, best=best)
    accelerator.end_training()
    notify({"event": "end", "folder": folder, "best": progress["best"], "monitor": training.monitor})
    return record or json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])  # of a run that was done


def _gradient_norm(run: Run, clip: float | None) -> float:
    parameters = [p for p in run.model.parameters() if p.grad is not None]
    if clip:
        norm = run.accelerator.clip_grad_norm_(parameters, clip)
    else:
        run.accelerator.unscale_gradients()
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def _monitored(metrics: dict[str, Any], monitor: str) -> float:
    value = metrics["mean_miou"]
    if monitor != "mean_miou":
        value = next(level["miou"] for level in metrics["levels"] if level["name"] == monitor)
    return -1.0 if value is None else value


def _start_event(run: Run, folder: Path, progress: dict[str, Any]) -> dict[str, Any]:
    parameters = sum(p.numel() for p in run.model.parameters())
    return {
        "event": "start",
        "folder": folder,
        "device": str(run.accelerator.device),
        "precision": {"no": "fp32"}.get(run.accelerator.mixed_precision, run.accelerator.mixed_precision),
        "processes": run.accelerator.num_processes,
        "parameters": parameters,
        "backbone": run.config.backbone.model_dump(),
        "init_from": run.config.init_from,
        "head": run.config.head.model_dump(),
        "loss": list(run.loss.terms),
        "class_weights": None if run.loss.class_weights is None else run.loss.class_weights.tolist(),
        "leaves": run.hierarchy.leaves,
        "epochs": run.config.training.epochs,
        "steps_per_epoch": run.steps_per_epoch,
        "step": progress["step"],
        "seghiero_version": __version__,
    }


def _record(run: Run, folder: Path, record: dict[str, Any], notify: Notify) -> None:
    if run.accelerator.is_main_process:
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(_without_nan(record)) + "\n")
    track(run.accelerator, record)
    notify(record)


def _without_nan(value: Any) -> Any:
    """`value` with None for what isn't finite, which JSON has no words for."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
