"""What a training run is made of, built from its config and wrapped by accelerate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from torch.utils.data import DataLoader

from seghiero_core.config.schema import Config
from seghiero_core.data.sampler import EpochSampler
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.losses.combine import HierarchicalLoss
from seghiero_core.model.measuring import MemoryLimit
from seghiero_core.training.feature_maps import divided_features, images_at_once, unpack_maps
from seghiero_core.training.optimizer import WeightAverage
from seghiero_core.training.sharding import gather_model


@dataclass
class Run:
    """The parts of a training run. Model, optimizer and loaders are wrapped by accelerate.

    Attributes:
        config: The resolved config: `training.batch_size` is a number.
        hierarchy: The class tree.
        accelerator: Devices, precision and processes.
        model: The network in training.
        loss: The loss of `config.loss`.
        optimizer: The optimizer of what is not frozen.
        sampler: The sampler of the training loader; it holds the place in an epoch.
        train_loader: Augmented batches of this process, on the CPU.
        val_loader: Validation batches of this process.
        val_limit: How much of a validation to compute at once.
        average: The exponential moving average of the weights, where `training.ema` asks for one.
        unsharded: With FSDP, a copy of the network that is not sharded, for validation.
        steps_per_epoch: Optimizer steps in one epoch.
        weights: A "weights" event for each file that the network was initialized from.
        data: What the check of the data found, in each split and source.
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
    val_limit: MemoryLimit
    average: WeightAverage | None
    unsharded: nn.Module | None
    steps_per_epoch: int
    weights: list[dict[str, Any]]
    data: list[dict[str, Any]]

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

    def to_device(self, batch: Mapping[str, Any], *, divide: bool = False) -> tuple[tuple[Any, ...], torch.Tensor]:
        """Move a batch of `train_loader` to the device.

        With `training.augmentation_variants` the features of a frozen backbone may be stored; whether they are or not,
        they are the same on the CPU, where they are computed image by image.

        Args:
            batch: The batch, of images or of stored features.
            divide: Whether to run the frozen backbone here in any case.

        Returns:
            The arguments for the network, and the target, B,H,W int64.
        """
        training, device = self.config.training, self.accelerator.device
        target = batch["target"].to(device, non_blocking=True)
        size = target.shape[-2:]
        if "maps" in batch:
            return (None, unpack_maps(batch, device), size), target
        images = self.images_of(batch)
        model, frozen = self.accelerator.unwrap_model(self.model), training.freeze == "backbone"
        at_once = images_at_once(device, len(images))
        if divide or (frozen and training.augmentation_variants and at_once == 1 and model.is_divisible):
            return (None, divided_features(model, images, self.accelerator, at_once), size), target
        return (images,), target

    def images_of(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Move the images of a batch to the device.

        Args:
            batch: The batch.

        Returns:
            B,N,H,W with the memory layout of the network.
        """
        images = batch["image"].to(self.accelerator.device, non_blocking=True)
        if self.config.training.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return images

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
