"""What a training run is made of, built from its config and wrapped by accelerate."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, set_seed
from torch import nn
from torch.utils.data import DataLoader

from seghiero_core.config.schema import Config
from seghiero_core.data.audit import audit
from seghiero_core.data.loaders import EpochSampler, eval_loader, train_loader
from seghiero_core.data.samples import Sample, split_samples
from seghiero_core.devices import check_processes, make_accelerator
from seghiero_core.errors import ConfigError
from seghiero_core.events import Notify, ignore_events
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.losses.combine import HierarchicalLoss, build_loss
from seghiero_core.model.factories import build_model
from seghiero_core.model.init_from import load_initial_weights
from seghiero_core.model.segmentation import SegmentationModel
from seghiero_core.training.batch_size import find_batch_size
from seghiero_core.training.freezing import freeze
from seghiero_core.training.optimizer import WeightAverage, make_optimizer
from seghiero_core.training.sharding import gather_model
from seghiero_core.training.trackers import check_trackers


@dataclass
class Run:
    """The parts of a training run. Model, optimizer and loaders are wrapped by accelerate.

    Attributes:
        config: The resolved config: `training.batch_size` is a number.
        hierarchy: The class tree.
        accelerator: Devices, precision and processes.
        model: The network in training.
        loss: The loss of `config.loss`.
        optimizer: AdamW over what is not frozen.
        sampler: The sampler of the training loader; it holds the place in an epoch.
        train_loader: Augmented batches of this process.
        val_loader: Validation batches of this process.
        average: The exponential moving average of the weights, where `training.ema` asks for one.
        unsharded: With FSDP, a copy of the network that is not sharded, for validation.
        steps_per_epoch: Optimizer steps in one epoch.
        weights: A "weights" event for each file that the network was initialized from.
    """

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
    unsharded: nn.Module | None
    steps_per_epoch: int
    weights: list[dict[str, Any]]

    @property
    def images_per_step(self) -> int:
        """Images in one optimizer step, over all processes and accumulated batches."""
        training = self.config.training
        return training.batch_size * training.gradient_accumulation * self.accelerator.num_processes

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps_per_epoch * self.config.training.epochs

    @property
    def precision(self) -> str:
        """The arithmetic of the forward pass: fp32, bf16 or fp16."""
        precision = self.accelerator.mixed_precision
        return "fp32" if precision == "no" else precision

    @property
    def is_sharded(self) -> bool:
        """Whether FSDP divides the weights and the optimizer's state among the processes."""
        return self.accelerator.distributed_type == DistributedType.FSDP

    def validates_after(self, step: int) -> bool:
        """Check whether a validation follows a step.

        Args:
            step: Number of the step, from 1.

        Returns:
            True for the last step of an epoch that `training.validate_every` selects, and of the run.
        """
        epoch, rest = divmod(step, self.steps_per_epoch)
        return rest == 0 and (epoch % self.config.training.validate_every == 0 or step == self.total_steps)

    def evaluated_model(self) -> nn.Module:
        """Return the model whose weights are measured and saved; every process must call it.

        Returns:
            The averaged model where there is one. With FSDP a copy in each process, since each measures other images.
        """
        if self.unsharded is not None:
            self.unsharded.load_state_dict(gather_model(self.model))
            return self.unsharded
        return self.average.model if self.average else self.accelerator.unwrap_model(self.model)


def prepare(config: Config, notify: Notify = ignore_events, *, load_weights: bool = True) -> Run:
    """Check the data, build every part of a run and wrap them by accelerate. Write nothing.

    Args:
        config: The config; with `batch_size: auto` the size is found here.
        notify: Receives the events "data", "download" and "weights", in the main process only.
        load_weights: Whether to load what `backbone.pretrained` and `init_from` name; a run that is resumed from a
            checkpoint needs neither.

    Returns:
        The run, before its first step.

    Raises:
        UsageError: When a tracker is not installed, or the config asks for something that isn't there.
        DataError: When the data is missing or has faults.
        DeviceError: When the machine has no such device, memory or processes.
        WeightsError: When weights can't be loaded.
    """
    training = config.training
    check_trackers(training.trackers)
    accelerator = make_accelerator(
        training.device,
        training.precision,
        accumulation=training.gradient_accumulation,
        trackers=training.trackers,
        folder=config.run_dir,
    )
    sharded = accelerator.distributed_type == DistributedType.FSDP
    check_processes(accelerator.num_processes, training.processes, sharded=sharded)
    if sharded and training.ema:
        raise ConfigError("training.ema: not available with FSDP, which shards the weights; use DDP, or set ema: 0.")
    if not accelerator.is_main_process:
        notify = ignore_events
    set_seed(training.seed)
    hierarchy = config.hierarchy

    # ── data, loss and network ───────────────────────────────────────────────────────────────────────────────────
    train_samples, counts = _checked_samples(config, hierarchy, "train", notify)
    val_samples, _ = _checked_samples(config, hierarchy, "val", notify)
    # The loader guarantees the target's values, and checking them would synchronize a GPU in every step.
    loss = build_loss(config.loss, hierarchy, counts=counts, validate=False)
    model, weights = _build_network(config, hierarchy, loss, notify, load_weights=load_weights)
    model = _place(model, config, accelerator)
    if training.batch_size == "auto":
        most = max(1, len(train_samples) // accelerator.num_processes)
        config = config_with_batch_size(config, find_batch_size(config, model, loss, accelerator, most=most))
        training = config.training
    optimizer = make_optimizer(model, training, pretrained=bool(config.backbone.pretrained or config.init_from))
    loaders = _make_loaders(config, hierarchy, accelerator, train_samples, val_samples)
    sampler = loaders[0].sampler

    # ── copies of the network, before it is compiled and accelerate wraps its forward ────────────────────────────
    unsharded = copy.deepcopy(model) if sharded else None
    average = WeightAverage(model, training.ema) if training.ema else None

    # ── accelerate ───────────────────────────────────────────────────────────────────────────────────────────────
    if training.compile:
        model.compile()
    model, optimizer, train_batches = accelerator.prepare(model, optimizer, loaders[0])
    accelerator.even_batches = False  # validation counts every image once
    val_batches = accelerator.prepare(loaders[1])
    return Run(
        config=config,
        hierarchy=hierarchy,
        accelerator=accelerator,
        model=model,
        loss=loss,
        optimizer=optimizer,
        sampler=sampler,
        train_loader=train_batches,
        val_loader=val_batches,
        average=average,
        unsharded=unsharded,
        steps_per_epoch=math.ceil(len(train_batches) / training.gradient_accumulation),
        weights=weights,
    )


def config_with_batch_size(config: Config, batch_size: int) -> Config:
    """Copy a config with another `training.batch_size`.

    Args:
        config: Any config.
        batch_size: Images per process and batch.

    Returns:
        The copy.
    """
    training = config.training.model_copy(update={"batch_size": batch_size})
    return config.model_copy(update={"training": training})


def _checked_samples(
    config: Config, hierarchy: Hierarchy, split: str, notify: Notify
) -> tuple[list[Sample], np.ndarray]:
    """Return the audited samples of a split, and its pixels per leaf (K)."""
    samples = split_samples(config.dataset, split)
    found = audit(samples, hierarchy, check=config.dataset.check)
    notify({"event": "data", "split": split, "images": len(samples), "sizes": list(found.sizes)})
    return samples, found.pixels[: len(hierarchy.leaves)]


def _build_network(
    config: Config, hierarchy: Hierarchy, loss: HierarchicalLoss, notify: Notify, *, load_weights: bool
) -> tuple[SegmentationModel, list[dict[str, Any]]]:
    """Return the network that the loss needs, and a "weights" event for each file that it was initialized from."""
    events: list[dict[str, Any]] = []
    record = partial(_record_and_notify, events, notify)
    if not load_weights:
        config = config.model_copy(update={"backbone": config.backbone.model_copy(update={"pretrained": False})})
    model = build_model(
        config,
        loss.num_channels,
        embedding=loss.uses_embedding,
        auxiliary=loss.auxiliary > 0,
        notify=record,
    )
    if config.init_from and load_weights:
        load_initial_weights(model, config, hierarchy, record)
    return model, [event for event in events if event["event"] == "weights"]


def _record_and_notify(events: list[dict[str, Any]], notify: Notify, event: dict[str, Any]) -> None:
    events.append(event)
    notify(event)


def _place(model: nn.Module, config: Config, accelerator: Accelerator) -> nn.Module:
    """Return the model on its device, with its memory layout, its synchronized norms and its frozen stages."""
    if config.training.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    freeze(model, config.training.freeze)
    return model.to(accelerator.device)


def _make_loaders(
    config: Config,
    hierarchy: Hierarchy,
    accelerator: Accelerator,
    train_samples: Sequence[Sample],
    val_samples: Sequence[Sample],
) -> tuple[DataLoader, DataLoader]:
    """Return the loaders of training and validation, not yet sharded over processes."""
    training = config.training
    common = {
        "batch_size": training.batch_size,
        "workers": training.workers,
        "device_type": accelerator.device.type,
        "processes": accelerator.num_processes,
    }
    train_batches = train_loader(
        train_samples,
        hierarchy,
        config.transform,
        seed=training.seed,
        accumulation=training.gradient_accumulation,
        **common,
    )
    return train_batches, eval_loader(val_samples, hierarchy, **common)
