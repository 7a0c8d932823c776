"""Building the parts of a run from its config; accelerate wraps them."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, set_seed
from torch import nn
from torch.utils.data import DataLoader

from seghiero_core.config.schema import Config
from seghiero_core.data.audit import Audit
from seghiero_core.data.check import check_data
from seghiero_core.data.loaders import epoch_length, eval_loader, train_loader
from seghiero_core.data.samples import Sample, find_splits
from seghiero_core.devices import check_processes, make_accelerator
from seghiero_core.errors import ConfigError, shorten
from seghiero_core.events import Notify, ignore_events
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.losses.catalog import LOSSES
from seghiero_core.losses.combine import HierarchicalLoss, build_loss
from seghiero_core.model.factories import build_model
from seghiero_core.model.init_from import load_initial_weights
from seghiero_core.model.segmentation import SegmentationModel
from seghiero_core.training.batch_size import find_batch_size
from seghiero_core.training.environment import data_facts
from seghiero_core.training.freezing import freeze
from seghiero_core.training.optimizer import WeightAverage, make_optimizer, start_momentum
from seghiero_core.training.run import Run, config_with_batch_size
from seghiero_core.training.trackers import check_trackers
from seghiero_core.training.val_batch_size import find_val_limit


def start_accelerator(config: Config) -> Accelerator:
    """Check trackers, device and processes, and start accelerate.

    Args:
        config: The config of the run.

    Returns:
        The accelerator, for `prepare`.

    Raises:
        UsageError: When a tracker is not installed.
        ConfigError: When FSDP can't do what the config asks for.
        DeviceError: When the machine has no such device or processes.
    """
    training = config.training
    check_trackers(training.trackers)
    accelerator = make_accelerator(
        training.device,
        training.precision,
        trackers=training.trackers,
        folder=config.run_dir,
    )
    sharded = accelerator.distributed_type == DistributedType.FSDP
    check_processes(accelerator.num_processes, training.processes, sharded=sharded)
    if sharded and training.ema:
        raise ConfigError("training.ema: not available with FSDP, which shards the weights; use DDP, or set ema: 0.")
    return accelerator


def prepare(
    config: Config,
    notify: Notify = ignore_events,
    accelerator: Accelerator | None = None,
    *,
    load_weights: bool = True,
) -> Run:
    """Check the data, build every part of a run and wrap them by accelerate. Write nothing.

    Whatever can fail at once fails before the images are decoded.

    Args:
        config: The config; with `batch_size: auto` the size is found here.
        notify: Receives the events "download", "weights" and "data", in the main process only.
        accelerator: What `start_accelerator` returned. Default: it is called here.
        load_weights: Whether to load what `backbone.pretrained` and `init_from` name; a run that is resumed from a
            checkpoint needs neither.

    Returns:
        The run, before its first step.

    Raises:
        UsageError: When the config asks for something that isn't there.
        DataError: When the data is missing or has faults.
        DeviceError: When the machine has no such device, memory or processes.
        WeightsError: When weights can't be loaded.
    """
    training = config.training
    accelerator = accelerator or start_accelerator(config)
    sharded = accelerator.distributed_type == DistributedType.FSDP
    if not accelerator.is_main_process:
        notify = ignore_events
    set_seed(training.seed)
    hierarchy = config.hierarchy

    # ── network, data and loss ───────────────────────────────────────────────────────────────────────────────────
    samples = find_splits(config.dataset, ("train", "val"))
    drawn = epoch_length(samples["train"], config.dataset.weights)
    provisional = build_loss(config.loss, hierarchy, counts=np.ones(len(hierarchy.leaves)))  # before data is counted
    if hierarchy.sets and not any(LOSSES[name].sets for name in provisional.terms):
        notify({"event": "warning", "text": _sets_warning(hierarchy, list(provisional.terms))})
    model, weights = _build_network(config, hierarchy, provisional, notify, load_weights=load_weights)
    audits = _check_data(config, samples, notify)
    train_samples, val_samples = audits["train"].samples, audits["val"].samples
    counts = audits["train"].drawn_pixels(config.dataset.weights)[: len(hierarchy.leaves)]
    # The loader guarantees the target's values, and checking them would synchronize a GPU in every step.
    head_loss = getattr(model.head, "loss", None)  # of a head with further outputs
    loss = build_loss(config.loss, hierarchy, counts=counts, head_loss=head_loss, validate=False)
    model = _place(model, config, accelerator)
    if training.batch_size == "auto":
        most = max(1, drawn // accelerator.num_processes)
        config = config_with_batch_size(config, find_batch_size(config, model, loss, accelerator, most=most))
        training = config.training
    model = _synchronize_norms(model, accelerator)
    optimizer = make_optimizer(model, training, pretrained=bool(config.backbone.pretrained or config.init_from))
    if drawn < training.batch_size * training.gradient_accumulation * accelerator.num_processes:
        notify({"event": "warning", "text": _small_set_warning(config, drawn, accelerator.num_processes)})
    sizes = audits["val"].sizes
    val_limit = find_val_limit(config, model, loss, accelerator, sizes=sizes, samples=len(val_samples), notify=notify)
    loaders = _make_loaders(config, hierarchy, accelerator, train_samples, val_samples, val_limit.images)
    sampler = loaders[0].sampler

    # ── copies of the network, before it is compiled and accelerate wraps its forward ────────────────────────────
    unsharded = copy.deepcopy(model) if sharded else None
    average = WeightAverage(model, training.ema) if training.ema else None

    # ── accelerate ───────────────────────────────────────────────────────────────────────────────────────────────
    if training.compile:
        model.compile()
    model, optimizer = accelerator.prepare(model, optimizer)
    # A step's batches are loaded before its first forward pass; they wait on the CPU.
    train_batches = accelerator.prepare_data_loader(loaders[0], device_placement=False)
    start_momentum(optimizer.optimizer)  # after FSDP has replaced the parameters
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
        val_limit=val_limit,
        average=average,
        unsharded=unsharded,
        steps_per_epoch=math.ceil(len(train_batches) / training.gradient_accumulation),
        weights=weights,
        data=data_facts(config.dataset, audits),
    )


def _sets_warning(hierarchy: Hierarchy, losses: Sequence[str]) -> str:
    names = [f"'{hierarchy.label_name(len(hierarchy) + i)}'" for i in range(len(hierarchy.sets))]
    able = [name for name, entry in LOSSES.items() if entry.sets]
    return (
        f"the labels {shorten(names, 3)} stand for several classes. The losses here ({', '.join(losses)}) learn only "
        f"from what these have in common, and ignore the pixel if that is nothing. {' and '.join(able)} learn from all."
    )


def _check_data(config: Config, samples: dict[str, list[Sample]], notify: Notify) -> dict[str, Audit]:
    """Decode and check the samples of each split, and report those of each source."""
    checked = check_data(config, samples, check=config.dataset.check)
    checked.raise_errors()
    for split, found in checked.audits.items():
        for source, part in (found.sources or {None: found}).items():
            named = {} if source is None else {"source": config.dataset.sources[source].name}
            event = {"event": "data", "split": split, **named, "images": len(part.samples), "sizes": list(part.sizes)}
            notify(event)
    for split, findings in checked.findings.items():
        for finding in findings:
            notify({"event": "warning", "text": f"{split}: {finding}"})
    return checked.audits


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
    """Return the model on its device, with its memory layout and its frozen stages."""
    if config.training.channels_last:
        model = model.to(memory_format=torch.channels_last)
    freeze(model, config.training.freeze)
    return model.to(accelerator.device)


def _synchronize_norms(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Return the model with a BatchNorm over all GPUs; the parameters stay the same objects."""
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return model


def _small_set_warning(config: Config, images: int, processes: int) -> str:
    training = config.training
    factors = {
        "training.batch_size": training.batch_size,
        "gradient_accumulation": training.gradient_accumulation,
        "processes": processes,
    }
    product = " x ".join(f"{name} {value}" for name, value in factors.items() if value > 1)
    return (
        f"{product} is more than the {images} training images of an epoch: each epoch is one step over them. "
        "Set training.batch_size lower for more steps."
    )


def _make_loaders(
    config: Config,
    hierarchy: Hierarchy,
    accelerator: Accelerator,
    train_samples: Sequence[Sample],
    val_samples: Sequence[Sample],
    val_batch_size: int,
) -> tuple[DataLoader, DataLoader]:
    """Return the loaders of training and validation, not yet sharded over processes."""
    training = config.training
    common = {
        "workers": training.workers,
        "device_type": accelerator.device.type,
        "processes": accelerator.num_processes,
    }
    train_batches = train_loader(
        train_samples,
        hierarchy,
        config.transform,
        batch_size=training.batch_size,
        seed=training.seed,
        weights=config.dataset.weights,
        accumulation=training.gradient_accumulation,
        variants=training.augmentation_variants,
        **common,
    )
    return train_batches, eval_loader(val_samples, hierarchy, batch_size=val_batch_size, **common)
