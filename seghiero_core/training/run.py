"""What a training run is made of, built from its config and handed to accelerate."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, set_seed
from torch import nn
from torch.utils.data import DataLoader

from seghiero_core.checkpoint import newest_whole_checkpoint
from seghiero_core.config.schema import Config
from seghiero_core.data.audit import audit
from seghiero_core.data.loaders import Augment, EpochSampler, eval_loader, train_loader
from seghiero_core.data.samples import split_samples
from seghiero_core.devices import check_processes, make_accelerator
from seghiero_core.errors import ConfigError
from seghiero_core.events import Notify, ignore_events
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.losses.combine import HierarchicalLoss, build_loss
from seghiero_core.model.factories import build_model
from seghiero_core.model.init_from import init_whole_model
from seghiero_core.training.batch_size import find_batch_size
from seghiero_core.training.freezing import freeze
from seghiero_core.training.optimizer import WeightAverage, make_optimizer
from seghiero_core.training.sharding import gather_model
from seghiero_core.training.trackers import check_trackers


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
    whole: nn.Module | None  # with FSDP: a copy that isn't sharded, for validation
    steps_per_epoch: int
    weights: list[dict[str, Any]]  # an event per file that the model starts from

    @property
    def images_per_step(self) -> int:
        """Of all processes and accumulated batches."""
        training = self.config.training
        return training.batch_size * training.gradient_accumulation * self.accelerator.num_processes

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.config.training.epochs

    @property
    def is_sharded(self) -> bool:
        """Whether FSDP holds the weights and the optimizer's state in pieces, one per process."""
        return self.accelerator.distributed_type == DistributedType.FSDP

    def validates_after(self, step: int) -> bool:
        """Whether an epoch that ends in validation ends with `step` (from 1)."""
        epoch, rest = divmod(step, self.steps_per_epoch)
        return rest == 0 and (epoch % self.config.training.validate_every == 0 or step == self.total_steps)

    def evaluated_model(self) -> nn.Module:
        """The model whose weights are measured and shipped: the average where there is one.

        With FSDP it is a copy on every process, since each measures other images; every process must call this.
        """
        if self.whole is not None:
            self.whole.load_state_dict(gather_model(self.model))
            return self.whole
        return self.average.model if self.average else self.accelerator.unwrap_model(self.model)


def prepare(config: Config, notify: Notify = ignore_events, *, resume: bool = False) -> Run:
    """Check the data, build every part of a run and hand them to accelerate. Writes nothing.

    The run's config is `config` with the batch size found where that is "auto". With `resume`, weights to start from
    are looked for only where the run has no whole checkpoint.
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
    if not accelerator.is_main_process:
        notify = ignore_events
    set_seed(training.seed)
    hierarchy = config.hierarchy
    dataset, samples, facts = config.dataset, {}, {}
    for name in ("train", "val"):
        samples[name] = split_samples(dataset, name)
        facts[name] = audit(samples[name], hierarchy, check=dataset.check)
        notify({"event": "data", "split": name, "images": len(samples[name]), "sizes": list(facts[name].sizes)})

    loss = build_loss(config.loss, hierarchy, counts=facts["train"].pixels[: len(hierarchy.leaves)])
    weights: list[dict[str, Any]] = []

    def tell(event: dict[str, Any]) -> None:
        if event["event"] == "weights":
            weights.append(event)
        notify(event)

    has_own = resume and newest_whole_checkpoint(config.run_dir)[0] is not None
    backbone = config.backbone.model_copy(update={"pretrained": False}) if has_own else config.backbone
    model = build_model(
        config.model_copy(update={"backbone": backbone}),
        loss.num_channels,
        embedding=loss.uses_embedding,
        auxiliary=loss.auxiliary > 0,
        notify=tell,
    )
    if config.init_from and not has_own:
        init_whole_model(model, config, hierarchy, tell)
    if training.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    freeze(model, training.freeze)
    model = model.to(accelerator.device)
    if training.batch_size == "auto":
        most = max(1, len(samples["train"]) // accelerator.num_processes)
        found = find_batch_size(config, model, loss, accelerator, most=most)
        training = training.model_copy(update={"batch_size": found})
        config = config.model_copy(update={"training": training})
    optimizer = make_optimizer(model, training, pretrained=bool(config.backbone.pretrained or config.init_from))
    loading = {
        "batch_size": training.batch_size,
        "workers": training.workers,
        "device_type": accelerator.device.type,
        "processes": accelerator.num_processes,
    }
    augment = Augment(**config.transform.model_dump(), seed=training.seed)
    loader = train_loader(samples["train"], hierarchy, augment, accumulation=training.gradient_accumulation, **loading)
    sampler = loader.sampler
    val_loader = eval_loader(samples["val"], hierarchy, **loading)
    # The copy for the average is taken before accelerate wraps the model's forward, and before it is compiled.
    if sharded and training.ema:
        raise ConfigError("training.ema: isn't available with FSDP, which shards the weights; use DDP, or ema: 0.")
    whole = copy.deepcopy(model) if sharded else None
    average = WeightAverage(model, training.ema) if training.ema else None
    if training.compile:
        model.compile()
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
        whole=whole,
        steps_per_epoch=math.ceil(len(loader) / training.gradient_accumulation),
        weights=weights,
    )
