"""The whole state of a run: into a checkpoint, and out of it again, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seghiero_core.checkpoint import (
    Checkpoint,
    DamagedCheckpoint,
    newest_intact_checkpoint,
    read_checkpoint,
    repair_run,
    save_checkpoint,
)
from seghiero_core.config.readers import BANDS_KEYS
from seghiero_core.config.schema import Config
from seghiero_core.errors import CheckpointError, ConfigError
from seghiero_core.events import Notify
from seghiero_core.training.progress import TrainingProgress, monitored
from seghiero_core.training.records import cut_records
from seghiero_core.training.run import Run, config_with_batch_size
from seghiero_core.training.sharding import gather_state, scatter_state


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoint that a run continues from. Its hashes are verified once, when `find` reads it.

    `ResumePoint(folder)` is that of a run that starts from scratch.

    Attributes:
        folder: The run folder.
        checkpoint: The newest intact checkpoint, or None before the first one.
        damaged: Newer checkpoint folders that are damaged, each with what is wrong with it.
    """

    folder: Path
    checkpoint: Checkpoint | None = None
    damaged: Mapping[Path, str] = field(default_factory=dict)

    @classmethod
    def find(cls, folder: Path) -> ResumePoint:
        """Read and verify the newest intact checkpoint of a run.

        Args:
            folder: The run folder; it need not exist.

        Returns:
            The checkpoint, if there is one, and what was passed over.

        Raises:
            CheckpointError: When all checkpoints are damaged, or the newest can't be used here.
        """
        checkpoint, damaged = newest_intact_checkpoint(folder)
        if checkpoint is None and damaged:
            raise CheckpointError(f"{folder}: all of its checkpoints are damaged; start over with --force.")
        return cls(folder, checkpoint, damaged)

    def config_to_resume(self, config: Config) -> Config:
        """Replace `batch_size: auto` by the size that the run began with; another would lose the place in the epoch.

        Args:
            config: The config that the run is to continue with.

        Returns:
            The config, unchanged where there is no checkpoint or the batch size is a number.
        """
        if self.checkpoint is None or config.training.batch_size != "auto":
            return config
        return config_with_batch_size(config, self.checkpoint.config.training.batch_size)

    def check_model(self, config: Config) -> None:
        """Check that the checkpoint is of a config's model, classes, loss and optimizer.

        Args:
            config: The config that the run is to continue with.

        Raises:
            ConfigError: When it isn't; the message lists the differences.
        """
        if self.checkpoint is None:
            return
        if changed := _differences(self.checkpoint.config, config, ("classes", "backbone", "head", "loss")):
            raise ConfigError(
                f"{self.folder} can't be resumed: it was trained with another model or other classes:\n{changed}"
            )
        was, now = self.checkpoint.config.dataset, config.dataset
        images = [
            line for key in BANDS_KEYS for line in _changes(f"dataset.{key}", getattr(was, key), getattr(now, key))
        ]
        if images:
            listed = "\n".join(images)
            raise ConfigError(f"{self.folder} can't be resumed: it was trained with other images:\n{listed}")
        before, now = self.checkpoint.config.training.optimizer, config.training.optimizer
        if before != now:
            raise ConfigError(
                f"{self.folder} can't be resumed with training.optimizer: {now}: its state is that of {before}. "
                f"Set training.optimizer: {before}, or start another run from its weights (init_from)."
            )


def resume_run(run: Run, point: ResumePoint, notify: Notify) -> TrainingProgress | None:
    """Load the state of a checkpoint into a run, and repair what a kill left in its folder.

    Args:
        run: The run, newly prepared.
        point: What to resume from.
        notify: Receives a warning for each damaged checkpoint, for each changed value, and where there is no
            checkpoint.

    Returns:
        The progress of the run, or None where there is no checkpoint and training starts from scratch.

    Raises:
        ConfigError: When the config has another number of images per step or epoch.
        CheckpointError: When the checkpoint holds no training state.
    """
    folder, checkpoint = point.folder, point.checkpoint
    for message in point.damaged.values():
        notify({"event": "warning", "text": f"{message} The one before it is used."})
    if checkpoint is None:
        notify({"event": "warning", "text": f"{folder} holds no checkpoint to resume; training starts from scratch."})
        if run.accelerator.is_main_process:
            cut_records(folder, 0, validated=False)
        return None
    tensors, saved = checkpoint.training_state()
    progress = TrainingProgress.from_json(saved)
    of_sources = ", the weights of their sources" if run.config.dataset.sources else ""
    for name in ("images_per_step", "steps_per_epoch"):
        before, now = getattr(progress, name), getattr(run, name)
        if before != now:
            raise ConfigError(
                f"{folder}: the run has {before} {name.replace('_', ' ')}, this config has {now}, so the place in the "
                f"epoch would be lost. Keep the training images{of_sources} and the product of training.batch_size, "
                "gradient_accumulation and the number of processes."
            )
    if changed := _differences(checkpoint.config, run.config, ("dataset", "transform", "training")):
        notify({"event": "warning", "text": f"{folder} is resumed with other values:\n{changed}"})
    _load_state(run, checkpoint, tensors, saved)
    if checkpoint.metrics and "validated_step" not in saved:  # older versions saved after the validation
        progress.validated_step = progress.step
    # training.json was written before the validation, and metrics.json after it
    uncounted = "mean_miou" in checkpoint.metrics and progress.validated_step != progress.step
    monitor = run.config.training.monitor
    if checkpoint.config.training.monitor != monitor:
        is_best = (folder / "best").resolve() == checkpoint.folder
        progress.best = None if uncounted and is_best else _value_of_best(folder, monitor)
        progress.without_improvement = 0
    if uncounted:
        progress.add_validation(checkpoint.metrics, monitor)
    if (folder / "best").resolve() in point.damaged:
        progress.best = None
    if run.accelerator.is_main_process:
        is_best = progress.best_step == progress.step
        repair_run(folder, checkpoint.folder, list(point.damaged), best=is_best)
        cut_records(folder, progress.step, validated=progress.validated_step == progress.step)
    return progress


def _value_of_best(folder: Path, monitor: str) -> float | None:
    """The value of the checkpoint that `best` links to by another measure than the one it was chosen by."""
    try:
        metrics = read_checkpoint(folder / "best").metrics
    except DamagedCheckpoint:
        return None
    return monitored(metrics, monitor) if metrics else None


def save_run(run: Run, folder: Path, progress: TrainingProgress) -> Path | None:
    """Write a checkpoint from the main process, without waiting for it in the others.

    Args:
        run: The run; with FSDP every process must call this.
        folder: The run folder.
        progress: The progress of the run.

    Returns:
        The checkpoint folder; None in the other processes.
    """
    if run.is_sharded:
        weights, state = gather_state(run.model, run.optimizer.optimizer)
    if not run.accelerator.is_main_process:
        return None
    model = run.accelerator.unwrap_model(run.model)
    if not run.is_sharded:
        weights, state = run.evaluated_model().state_dict(), _optimizer_tensors(run, model)
    tensors = {f"optimizer.{name}": value for name, value in state.items()}
    saved = progress.to_json()
    if run.accelerator.scaler:
        saved["scaler"] = run.accelerator.scaler.state_dict()
    if run.average:
        tensors |= {f"model.{name}": value for name, value in model.state_dict().items()}
        saved["average_updates"] = run.average.updates
    return save_checkpoint(
        folder,
        progress.step,
        config=run.config,
        metrics=None,
        model=weights,
        training=tensors,
        progress=saved,
        best=False,
    )


def _load_state(
    run: Run, checkpoint: Checkpoint, tensors: Mapping[str, torch.Tensor], saved: Mapping[str, Any]
) -> None:
    """Load weights, averaged weights, optimizer and gradient scaler."""
    model = run.accelerator.unwrap_model(run.model)
    if run.is_sharded:
        state = _with_prefix(tensors, "optimizer.")
        scatter_state(run.model, run.optimizer.optimizer, checkpoint.model_tensors(), state)
    else:
        if run.average:
            run.average.model.load_state_dict(checkpoint.model_tensors())
            run.average.updates = saved["average_updates"]
            model.load_state_dict(_with_prefix(tensors, "model."))
        else:
            model.load_state_dict(checkpoint.model_tensors())
        _load_optimizer(run, model, _with_prefix(tensors, "optimizer."))
    if run.accelerator.scaler and "scaler" in saved:
        run.accelerator.scaler.load_state_dict(saved["scaler"])


def _with_prefix(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Return the tensors whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _optimizer_tensors(run: Run, model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the optimizer's state by `parameter name/key`, which doesn't depend on the order of its groups."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    state = run.optimizer.state
    return {f"{names[p]}/{key}": value for p, values in state.items() for key, value in values.items()}


def _load_optimizer(run: Run, model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Load what `_optimizer_tensors` returned."""
    parameters = dict(model.named_parameters())
    for name, value in state.items():
        parameter_name, _, key = name.rpartition("/")
        parameter = parameters[parameter_name]
        # The fused kernels walk through memory, so the moments need the layout of the weights (channels-last).
        value = value.to(parameter.device) if key == "step" else torch.empty_like(parameter).copy_(value)
        run.optimizer.state[parameter][key] = value


def _differences(old: Config, new: Config, sections: Sequence[str]) -> str:
    """Return a line for each key of the sections in which two configs differ."""
    before, after = old.model_dump(), new.model_dump()
    lines = []
    for section in sections:
        for key in sorted({*before[section], *after[section]}):
            if key not in ("pretrained", "gradient_checkpointing"):
                lines += _changes(f"{section}.{key}", before[section].get(key), after[section].get(key))
    return "\n".join(lines)


def _changes(key: str, was: Any, now: Any) -> Iterator[str]:
    """A line for a value that has changed; of sources, for each key that has."""
    if key == "dataset.sources" and was and now and [each["name"] for each in was] == [each["name"] for each in now]:
        for i, (source, changed) in enumerate(zip(was, now, strict=True)):
            for name in {**source, **changed}:
                yield from _changes(f"{key}.{i}.{name}", source.get(name), changed.get(name))
    elif was != now:
        yield f"  {key}: {was!r} in the run, {now!r} now"
