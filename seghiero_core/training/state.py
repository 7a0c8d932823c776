"""The whole state of a run, out of it into a checkpoint and back, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seghiero_core.checkpoint import newest_whole_checkpoint, repair_run, save_checkpoint
from seghiero_core.config.schema import Config
from seghiero_core.errors import CheckpointError, ConfigError
from seghiero_core.events import Notify
from seghiero_core.training.run import Run
from seghiero_core.training.sharding import gather_state, scatter_state


def resume_run(run: Run, folder: Path, progress: dict[str, Any], notify: Notify) -> dict[str, Any]:
    """Put the newest whole checkpoint's state into `run` and return its progress, or `progress` if there is none."""
    checkpoint, damaged = newest_whole_checkpoint(folder)
    for message in damaged.values():
        notify({"event": "warning", "text": f"{message} The one before it is used."})
    if checkpoint is None and damaged:
        raise CheckpointError(f"{folder}: none of its checkpoints is whole; start again with --force.")
    if checkpoint is None:
        notify({"event": "warning", "text": f"{folder} holds no checkpoint to resume; the run starts afresh."})
        return progress
    changed = _differences(checkpoint.config, run.config, ("classes", "backbone", "head", "loss"))
    if changed:
        raise ConfigError(f"{folder} was trained with another model or classes; it can't be resumed:\n" + changed)
    tensors, saved = checkpoint.training_state()
    for what in ("images_per_step", "steps_per_epoch"):
        if saved[what] != progress[what]:
            raise ConfigError(
                f"{folder}: the run has {saved[what]} {what.replace('_', ' ')}, this config {progress[what]}, so that "
                "its place would be lost. Keep training.batch_size x gradient_accumulation x the number of processes, "
                "and the training images, as they were."
            )
    if changed := _differences(checkpoint.config, run.config, ("dataset", "transform", "training")):
        notify({"event": "warning", "text": f"{folder} goes on with other values than it had:\n{changed}"})
    model = run.accelerator.unwrap_model(run.model)
    if run.is_sharded:
        state = {k.removeprefix("optimizer."): v for k, v in tensors.items() if k.startswith("optimizer.")}
        scatter_state(run.model, run.optimizer.optimizer, checkpoint.model_tensors(), state)
    elif run.average:
        run.average.model.load_state_dict(checkpoint.model_tensors())
        run.average.updates = saved["average_updates"]
        model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    else:
        model.load_state_dict(checkpoint.model_tensors())
    if not run.is_sharded:
        _load_optimizer(run, model, tensors)
    torch.set_rng_state(tensors["rng.cpu"])
    if torch.cuda.is_available() and "rng.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["rng.cuda"])
    if run.accelerator.scaler and "scaler" in saved:
        run.accelerator.scaler.load_state_dict(saved["scaler"])
    progress = {key: saved.get(key, value) for key, value in progress.items()}
    if (folder / "best").resolve() in damaged:
        progress["best"] = None
    if run.accelerator.is_main_process:
        is_best = progress["best_step"] == progress["step"]
        repair_run(folder, checkpoint.folder, list(damaged), best=is_best)
    return progress


def batch_size_of_run(config: Config) -> Config:
    """`config` with the batch size that its run began with, where it says "auto": another would lose the place."""
    if config.training.batch_size != "auto":
        return config
    checkpoint, _ = newest_whole_checkpoint(config.run_dir)
    if checkpoint is None:
        return config
    found = {"batch_size": checkpoint.config.training.batch_size}
    return config.model_copy(update={"training": config.training.model_copy(update=found)})


def save_run(run: Run, folder: Path, progress: dict[str, Any], metrics: dict[str, Any], *, best: bool) -> None:
    """Write a checkpoint from the main process; nothing waits for it here. With FSDP every process must call it."""
    if run.is_sharded:
        weights, state = gather_state(run.model, run.optimizer.optimizer)
    if run.accelerator.is_main_process:
        model = run.accelerator.unwrap_model(run.model)
        if not run.is_sharded:
            weights, state = run.evaluated_model().state_dict(), _optimizer_tensors(run, model)
        tensors = {f"optimizer.{name}": value for name, value in state.items()}
        tensors["rng.cpu"] = torch.get_rng_state()
        if run.accelerator.device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state()
        saved = dict(progress)
        if run.accelerator.scaler:
            saved["scaler"] = run.accelerator.scaler.state_dict()
        if run.average:
            tensors |= {f"model.{name}": value for name, value in model.state_dict().items()}
            saved["average_updates"] = run.average.updates
        save_checkpoint(
            folder,
            progress["step"],
            config=run.config,
            metrics=metrics,
            model=weights,
            training=tensors,
            progress=saved,
            best=best,
        )


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
            of = parameters[parameter]
            # AdamW's fused kernel walks through memory: its moments must lie as the weights do (channels-last).
            value = value.to(of.device) if key == "step" else torch.empty_like(of).copy_(value)
            run.optimizer.state[of][key] = value


def _differences(old: Config, new: Config, sections: Sequence[str]) -> str:
    """One line per key of the sections in which two configs differ."""
    lines = []
    for section in sections:
        before, after = (
            {"": v} if not isinstance(v, dict) else v for v in (old.model_dump()[section], new.model_dump()[section])
        )
        for key in sorted({*before, *after}):
            if before.get(key) != after.get(key) and key not in ("pretrained", "gradient_checkpointing"):
                lines.append(f"  {section}.{key}: {before.get(key)!r} in the run, {after.get(key)!r} now")
    return "\n".join(lines)
