"""Training: what a run is made of, and the loop, written out from top to bottom.

`train` returns plain values and tells what happens through `notify(event)`; each event is a dict with a key "event":
start, step, validation, checkpoint, warning, end. The records of steps and validations are also appended to the
run's metrics.jsonl.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from seghiero_core import __version__
from seghiero_core.data.loaders import batches
from seghiero_core.engine import peak_memory_mib
from seghiero_core.errors import DeviceError, UsageError
from seghiero_core.evaluate import evaluate, summary
from seghiero_core.optim import lr_factor, set_lr
from seghiero_core.report import prediction_grid
from seghiero_core.run import Notify, Run, prepare, quiet
from seghiero_core.schema import Config
from seghiero_core.signals import StopSignal
from seghiero_core.training_state import resume_run, save_run


def train(config: Config, *, resume: bool = False, force: bool = False, notify: Notify = quiet) -> dict:
    """Train the network of `config` and return its last record.

    The run folder `output.dir/output.name` gets config.yaml, metrics.jsonl, checkpoints with the links `best` and
    `last`, and validation.png. Raises UsageError when the folder holds a run and neither `resume` nor `force` is
    given, DataError or DeviceError before anything is written.
    """
    folder = config.run_dir
    _check_run_folder(folder, resume, force)
    run = prepare(config, notify)
    training, accelerator = config.training, run.accelerator
    if not accelerator.is_main_process:
        notify = quiet
    progress = {"step": 0, "epoch": 0, "best": None, "bad_steps": 0}
    if resume:
        progress = resume_run(run, folder, progress, notify)
    elif accelerator.is_main_process and folder.exists():
        shutil.rmtree(folder)
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(config.to_yaml())
    accelerator.wait_for_everyone()
    notify(_start_event(run, folder, progress))

    record: dict[str, Any] = {}
    step, batch_images = progress["step"], training.batch_size * accelerator.num_processes
    with StopSignal() as stop:
        for epoch in range(progress["epoch"], training.epochs):
            # ── one epoch ────────────────────────────────────────────────────────────────────────────────────────
            done_here = step - epoch * run.steps_per_epoch
            run.sampler.start_epoch(epoch, start=done_here * training.gradient_accumulation * batch_images)
            run.model.train()
            started = time.perf_counter()
            for batch in batches(run.train_loader):
                # ── one step: forward, loss, backward, update ────────────────────────────────────────────────────
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
                    accelerator.backward(total)
                    if not accelerator.sync_gradients:
                        continue
                    norm = _gradient_norm(run, training.clip_norm)
                    factor = lr_factor(step, run.total_steps, warmup=training.warmup, power=training.power)
                    set_lr(run.optimizer, factor)
                    if math.isfinite(norm):
                        run.optimizer.step()
                    else:
                        progress["bad_steps"] += 1
                        _check_bad_steps(progress["bad_steps"], training.max_bad_steps, terms, step, notify)
                    run.optimizer.zero_grad()
                if run.average and math.isfinite(norm):
                    run.average.update(accelerator.unwrap_model(run.model))
                step += 1
                seconds, started = time.perf_counter() - started, time.perf_counter()
                # ── what happened ────────────────────────────────────────────────────────────────────────────────
                record = {
                    "event": "step",
                    "step": step,
                    "epoch": epoch,
                    "loss": total.item(),
                    "terms": {name: value.item() for name, value in terms.items()},
                    "lr": training.lr * factor,
                    "grad_norm": norm,
                    "seconds": seconds,  # of the whole step, waiting for its data included
                    "images": batch_images * training.gradient_accumulation,
                    "memory_mib": peak_memory_mib(accelerator.device),
                }
                _record(run, folder, record, notify)
                if stop.requested:
                    progress |= {"step": step, "epoch": epoch}
                    save_run(run, folder, progress, {"step": step, "epoch": epoch}, best=False)
                    stop.leave(f"stopped at step {step} of {run.total_steps}; go on with --resume.")
            # ── validation and checkpoint at the end of the epoch ────────────────────────────────────────────────
            progress |= {"step": step, "epoch": epoch + 1}
            if (epoch + 1) % training.validate_every and epoch + 1 < training.epochs:
                continue
            counted, pictures = evaluate(
                run.evaluated_model(),
                run.val_loader,
                run.hierarchy,
                accelerator=accelerator,
                scores=run.loss.scores,
                keep=4,
            )
            metrics = summary(counted)
            value = _monitored(metrics, training.monitor)
            best = progress["best"] is None or value > progress["best"]
            progress["best"] = value if best else progress["best"]
            record = {"event": "validation", "step": step, "epoch": epoch, "best": best, "metrics": metrics}
            _record(run, folder, record, notify)
            if accelerator.is_main_process:
                prediction_grid(*zip(*pictures, strict=True), run.hierarchy).save(folder / "validation.png")
            save_run(run, folder, progress, metrics | {"step": step, "epoch": epoch}, best=best)
    notify({"event": "end", "folder": folder, "best": progress["best"], "monitor": training.monitor})
    return record


def _check_run_folder(folder: Path, resume: bool, force: bool) -> None:
    if resume and force:
        raise UsageError("give either --resume or --force, not both.")
    holds_run = (folder / "checkpoints").exists()
    if holds_run and not (resume or force):
        raise UsageError(
            f"{folder} holds a run; go on with it (--resume), overwrite it (--force), or set another output.name."
        )
    if folder.exists() and not holds_run and not (folder / "config.yaml").exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} holds files that are no run; set another output.name.")


def _gradient_norm(run: Run, clip: float | None) -> float:
    parameters = [p for p in run.model.parameters() if p.grad is not None]
    if clip:
        return float(run.accelerator.clip_grad_norm_(parameters, clip))
    run.accelerator.unscale_gradients()
    return float(torch.nn.utils.get_total_norm([p.grad for p in parameters]))


def _check_bad_steps(count: int, most: int, terms: dict[str, torch.Tensor], step: int, notify: Notify) -> None:
    bad = [name for name, value in terms.items() if not math.isfinite(value.item())]
    what = f"loss term {bad[0]} is not finite" if bad else "the gradient is not finite"
    if count >= most:
        raise DeviceError(
            f"{what} at step {step}, the {count}th skipped step (training.max_bad_steps: {most}). "
            "Lower training.lr, set training.clip_norm: 1.0, or use training.precision: fp32."
        )
    notify({"event": "warning", "text": f"step {step} was skipped: {what} ({count} of {most})."})


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
            file.write(json.dumps(record) + "\n")
    notify(record)
