"""Training: what a run is made of, and the loop, written out from top to bottom.

`train` returns plain values and tells what happens through `notify(event)`; each event is a dict with a key "event":
start, step, validation, checkpoint, warning, end. The records of steps and validations are also appended to the
run's metrics.jsonl.
"""

from __future__ import annotations

import json
import math
import resource
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader

from seghiero_core import __version__
from seghiero_core.checkpoint import newest_whole_checkpoint, save_checkpoint
from seghiero_core.data.audit import audit
from seghiero_core.data.loaders import Augment, EpochSampler, batches, eval_loader, train_loader
from seghiero_core.data.samples import find_samples
from seghiero_core.engine import make_accelerator
from seghiero_core.errors import ConfigError, DeviceError, UsageError
from seghiero_core.evaluate import evaluate, summary
from seghiero_core.hierarchy import Hierarchy
from seghiero_core.losses.combine import HierarchicalLoss, build_loss
from seghiero_core.model import build_model
from seghiero_core.optim import WeightAverage, lr_factor, make_optimizer, set_lr
from seghiero_core.report import prediction_grid
from seghiero_core.schema import Config
from seghiero_core.signals import StopSignal

Notify = Callable[[dict[str, Any]], None]


@dataclass
class Run:
    """Everything that a training run is made of, built from its config."""

    config: Config
    hierarchy: Hierarchy
    accelerator: Accelerator
    model: nn.Module
    loss: HierarchicalLoss
    optimizer: torch.optim.Optimizer
    sampler: EpochSampler
    train_loader: DataLoader
    val_loader: DataLoader
    average: WeightAverage | None
    steps_per_epoch: int

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.config.training.epochs

    def evaluated_model(self) -> nn.Module:
        """The model whose weights are measured and shipped: the average where there is one."""
        return self.average.model if self.average else self.accelerator.unwrap_model(self.model)


def train(config: Config, *, resume: bool = False, force: bool = False, notify: Notify = lambda event: None) -> dict:
    """Train the network of `config` and return its last record.

    The run folder `output.dir/output.name` gets config.yaml, metrics.jsonl, checkpoints with the links `best` and
    `last`, and validation.png. Raises UsageError when the folder holds a run and neither `resume` nor `force` is
    given, DataError or DeviceError before anything is written.
    """
    folder = config.run_dir
    _check_run_folder(folder, resume, force)
    run = prepare(config, notify)
    training, accelerator = config.training, run.accelerator
    progress = {"step": 0, "epoch": 0, "best": None, "bad_steps": 0}
    if resume:
        progress = _resume(run, folder, progress, notify)
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
            for batch in batches(run.train_loader):
                started = time.perf_counter()
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
                # ── what happened ────────────────────────────────────────────────────────────────────────────────
                record = {
                    "event": "step",
                    "step": step,
                    "epoch": epoch,
                    "loss": total.item(),
                    "terms": {name: value.item() for name, value in terms.items()},
                    "lr": training.lr * factor,
                    "grad_norm": norm,
                    "seconds": time.perf_counter() - started,
                    "images": batch_images * training.gradient_accumulation,
                    "memory_mib": _memory_mib(accelerator.device),
                }
                _record(run, folder, record, notify)
                if stop.requested:
                    progress |= {"step": step, "epoch": epoch}
                    _save(run, folder, progress, {"step": step, "epoch": epoch}, best=False)
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
            _save(run, folder, progress, metrics | {"step": step, "epoch": epoch}, best=best)
    notify({"event": "end", "folder": folder, "best": progress["best"], "monitor": training.monitor})
    return record


def prepare(config: Config, notify: Notify = lambda event: None) -> Run:
    """Check the data, build every part of a run and hand them to accelerate. Writes nothing."""
    training = config.training
    accelerator = make_accelerator(training)
    set_seed(training.seed)
    hierarchy = Hierarchy.from_config(config.classes)
    if training.monitor not in _monitors(hierarchy):
        raise ConfigError(f"training.monitor: no '{training.monitor}'; known: {', '.join(_monitors(hierarchy))}.")
    dataset, samples, facts = config.dataset, {}, {}
    for name in ("train", "val"):
        samples[name] = find_samples(
            getattr(dataset, name), name=name, image_suffix=dataset.image_suffix, mask_suffix=dataset.mask_suffix
        )
        facts[name] = audit(samples[name], hierarchy, check=dataset.check)
        notify({"event": "data", "split": name, "images": len(samples[name]), "sizes": list(facts[name].sizes)})

    loss = build_loss(config.loss, hierarchy, counts=facts["train"].pixels[: len(hierarchy.leaves)])
    model = build_model(config, loss.num_channels, embedding=loss.uses_embedding, auxiliary=loss.auxiliary > 0)
    if training.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    optimizer = make_optimizer(model, training, pretrained=bool(config.backbone.pretrained))
    loading = {
        "batch_size": training.batch_size,
        "workers": training.workers,
        "device_type": accelerator.device.type,
        "processes": accelerator.num_processes,
    }
    augment = Augment(**config.transform.model_dump(), seed=training.seed)
    loader = train_loader(samples["train"], hierarchy, augment, **loading)
    sampler = loader.sampler
    val_loader = eval_loader(samples["val"], hierarchy, **loading)
    # The copy for the average is taken before accelerate wraps the model's forward.
    model = model.to(accelerator.device)
    average = WeightAverage(model, training.ema) if training.ema else None
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    accelerator.even_batches = False  # validation counts every image once
    val_loader = accelerator.prepare(val_loader)
    return Run(
        config=config,
        hierarchy=hierarchy,
        accelerator=accelerator,
        model=model,
        loss=loss,
        optimizer=optimizer,
        sampler=sampler,
        train_loader=loader,
        val_loader=val_loader,
        average=average,
        steps_per_epoch=math.ceil(len(loader) / training.gradient_accumulation),
    )


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


def _resume(run: Run, folder: Path, progress: dict[str, Any], notify: Notify) -> dict[str, Any]:
    """Put the newest whole checkpoint's state into `run` and return its progress, or `progress` if there is none."""
    checkpoint, damaged = newest_whole_checkpoint(folder)
    for message in damaged:
        notify({"event": "warning", "text": f"{message} The one before it is used."})
    if checkpoint is None:
        notify({"event": "warning", "text": f"{folder} holds no checkpoint to resume; the run starts afresh."})
        return progress
    changed = _differences(checkpoint.config, run.config)
    if changed:
        raise ConfigError(f"{folder} was trained with another model or classes; it can't be resumed:\n" + changed)
    tensors, saved = checkpoint.training_state()
    model = run.accelerator.unwrap_model(run.model)
    if run.average:
        run.average.model.load_state_dict(checkpoint.model_tensors())
        run.average.updates = saved["average_updates"]
        model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    else:
        model.load_state_dict(checkpoint.model_tensors())
    _load_optimizer(run, model, tensors)
    torch.set_rng_state(tensors["rng.cpu"])
    if torch.cuda.is_available() and "rng.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["rng.cuda"])
    return {key: saved[key] for key in progress}


def _save(run: Run, folder: Path, progress: dict[str, Any], metrics: dict[str, Any], *, best: bool) -> None:
    """Write a checkpoint from the main process, and let the others wait for it."""
    if run.accelerator.is_main_process:
        model = run.accelerator.unwrap_model(run.model)
        tensors = {f"optimizer.{name}": value for name, value in _optimizer_tensors(run, model).items()}
        tensors["rng.cpu"] = torch.get_rng_state()
        if run.accelerator.device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state()
        saved = dict(progress)
        if run.average:
            tensors |= {f"model.{name}": value for name, value in model.state_dict().items()}
            saved["average_updates"] = run.average.updates
        save_checkpoint(
            folder,
            progress["step"],
            config=run.config,
            metrics=metrics,
            model=run.evaluated_model().state_dict(),
            training=tensors,
            progress=saved,
            best=best,
        )
    run.accelerator.wait_for_everyone()


def _optimizer_tensors(run: Run, model: nn.Module) -> dict[str, torch.Tensor]:
    """AdamW's state by `parameter name/key`, which doesn't depend on the order of groups."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    state = run.optimizer.state
    return {f"{names[p]}/{key}": value for p, values in state.items() for key, value in values.items()}


def _load_optimizer(run: Run, model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            parameter, _, key = name.removeprefix("optimizer.").rpartition("/")
            device = "cpu" if key == "step" else parameters[parameter].device
            run.optimizer.state[parameters[parameter]][key] = value.to(device)


def _differences(old: Config, new: Config) -> str:
    """One line per key of the sections that shape the weights in which two configs differ."""
    lines = []
    for section in ("classes", "backbone", "head", "loss"):
        before, after = (
            {"": v} if not isinstance(v, dict) else v for v in (old.model_dump()[section], new.model_dump()[section])
        )
        for key in sorted({*before, *after}):
            if before.get(key) != after.get(key) and key not in ("pretrained", "gradient_checkpointing"):
                lines.append(f"  {section}.{key}: {before.get(key)!r} in the run, {after.get(key)!r} now")
    return "\n".join(lines)


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


def _monitors(hierarchy: Hierarchy) -> list[str]:
    return ["mean_miou", *(level.name for level in hierarchy.levels)]


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


def _memory_mib(device: torch.device) -> float:
    """Peak memory of the run so far, MiB: the GPU's where there is one, else the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**10 if torch.backends.mps.is_available() is False else peak / 2**20
