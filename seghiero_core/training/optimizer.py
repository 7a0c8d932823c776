"""Parameter groups, the schedule of the learning rate, and the moving average of the weights."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from seghiero_core.config.schema import TrainingConfig
from seghiero_core.registry import NECK
from seghiero_core.training.freezing import STAGES, backbone_stages

_SGD_MOMENTUM = 0.9


def make_optimizer(model: nn.Module, training: TrainingConfig, *, pretrained: bool) -> torch.optim.Optimizer:
    """Create the optimizer with two learning rates and no weight decay on biases and norms, over what is not frozen.

    The backbone learns at `training.backbone_lr`; the default is a tenth of `training.lr` for a pretrained backbone and
    `training.lr` otherwise. That is the rate of its last stage; each earlier stage learns at `training.layer_decay`
    times the rate of the next (layer-wise decay, Clark et al. 2020, ELECTRA, with stages for layers).

    Args:
        model: A model; parameters whose names start with "backbone." are those of the backbone, except for its neck.
        training: The section of the config.
        pretrained: Whether the backbone starts from loaded weights.

    Returns:
        The optimizer. Each group has its peak learning rate as `peak_lr`.
    """
    backbone_lr = training.backbone_lr or training.lr * (0.1 if pretrained else 1.0)
    stages = backbone_stages(model.backbone, model.mean.numel()) if training.layer_decay < 1 else {}
    members: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            in_backbone = name.startswith("backbone.") and not name.startswith(f"backbone.{NECK}")
            stage = stages.get(name.removeprefix("backbone."), STAGES) if in_backbone else STAGES + 1
            members.setdefault((stage, parameter.ndim <= 1), []).append(parameter)
    groups = []
    for (stage, no_decay), parameters in sorted(members.items(), key=lambda item: item[0]):
        lr = training.lr if stage > STAGES else backbone_lr * training.layer_decay ** (STAGES - stage)
        weight_decay = 0.0 if no_decay else training.weight_decay
        groups.append({"params": parameters, "lr": lr, "peak_lr": lr, "weight_decay": weight_decay})
    # The fused kernel of AdamW takes a fifth of the default's time on two CPU cores.
    if training.optimizer == "adamw":
        return torch.optim.AdamW(groups, fused=True)
    return torch.optim.SGD(groups, momentum=_SGD_MOMENTUM, fused=True)


def start_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Let the momentum of SGD start at 0, which is how PyTorch starts it in the first step; AdamW needs no start.

    In the first step the fused kernel allocates the momentum without setting it, so one that a gradient scaler skips
    would leave any values there.

    Args:
        optimizer: What `make_optimizer` returned, before its first step.
    """
    for group in optimizer.param_groups:
        if group.get("momentum"):
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def lr_factor(step: int, total_steps: int, training: TrainingConfig) -> float:
    """Compute the learning rate of a step relative to its peak: linear warm-up times the decay of the schedule.

    The decay runs over the whole length, from 1 to 0: (1 - step / total_steps)^power for "poly" (Chen et al. 2017,
    DeepLab), half a cosine for "cosine" (Loshchilov and Hutter 2017, SGDR). "constant" has none.

    Args:
        step: The step, from 0.
        total_steps: Steps of the whole run.
        training: The section of the config: its `schedule`, `warmup` and `power`.

    Returns:
        A factor between 0 and 1.
    """
    ramp = min(1.0, (step + 1) / max(1, math.ceil(training.warmup * total_steps)))
    done = step / total_steps
    if training.schedule == "constant":
        return ramp
    if training.schedule == "cosine":
        return ramp * (1 + math.cos(math.pi * done)) / 2
    return ramp * (1 - done) ** training.power


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set the learning rate of every parameter group.

    Args:
        optimizer: What `make_optimizer` returned.
        factor: The rate relative to the group's `peak_lr`.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


class WeightAverage:
    """Exponential moving average of a model's weights (Polyak and Juditsky 1992).

    After n updates the decay is (1 + n) / (10 + n), up to `decay`, so that the average forgets the random start. The
    running mean and variance of BatchNorm are averaged too, since those of a single step don't fit the averaged
    weights; integer buffers are copied.

    Args:
        model: The model to average.
        decay: The limit of the decay, such as 0.99.

    Attributes:
        model: A copy of the model with the averaged weights, in eval mode.
        updates: Number of updates so far.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the current weights.

        Args:
            model: The model in training.
        """
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))
        averages, current = zip(*[pair for pair in pairs if pair[0].is_floating_point()], strict=True)
        torch._foreach_lerp_(averages, current, 1 - decay)
        for average, new in pairs:
            if not average.is_floating_point():
                average.copy_(new)
