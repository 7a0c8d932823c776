"""What a training run is made of, built from its config and handed to accelerate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader

from seghiero_core.data.audit import audit
from seghiero_core.data.loaders import Augment, EpochSampler, eval_loader, train_loader
from seghiero_core.data.samples import find_samples
from seghiero_core.engine import make_accelerator
from seghiero_core.errors import ConfigError
from seghiero_core.hierarchy import Hierarchy
from seghiero_core.losses.combine import HierarchicalLoss, build_loss
from seghiero_core.model import build_model
from seghiero_core.optim import WeightAverage, make_optimizer
from seghiero_core.schema import Config

Notify = Callable[[dict[str, Any]], None]


def quiet(event: dict[str, Any]) -> None:
    """The `Notify` of who wants to hear nothing."""


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


def prepare(config: Config, notify: Notify = quiet) -> Run:
    """Check the data, build every part of a run and hand them to accelerate. Writes nothing."""
    training = config.training
    accelerator = make_accelerator(training)
    if not accelerator.is_main_process:
        notify = quiet
    set_seed(training.seed)
    hierarchy = Hierarchy.from_config(config.classes)
    if training.monitor not in monitors(hierarchy):
        raise ConfigError(f"training.monitor: no '{training.monitor}'; known: {', '.join(monitors(hierarchy))}.")
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


def monitors(hierarchy: Hierarchy) -> list[str]:
    """What `training.monitor` may name."""
    return ["mean_miou", *(level.name for level in hierarchy.levels)]
