"""Parameter groups, the learning rate's schedule and the running average of the weights."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from seghiero_core.schema import TrainingConfig


def make_optimizer(model: nn.Module, training: TrainingConfig, *, pretrained: bool) -> torch.optim.AdamW:
    """AdamW with two learning rates and no weight decay on biases and norms.

    The backbone's is `training.backbone_lr`, by default a tenth of `training.lr` for a pretrained one and the same
    otherwise. Each group keeps its peak rate as `peak_lr`.
    """
    backbone_lr = training.backbone_lr or training.lr * (0.1 if pretrained else 1.0)
    groups = []
    for in_backbone, lr in ((True, backbone_lr), (False, training.lr)):
        named = [
            parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and name.startswith("backbone.") == in_backbone
        ]
        for decays in (True, False):
            parameters = [p for p in named if (p.ndim > 1) == decays]
            if parameters:
                weight_decay = training.weight_decay if decays else 0.0
                groups.append({"params": parameters, "lr": lr, "peak_lr": lr, "weight_decay": weight_decay})
    return torch.optim.AdamW(groups)


def lr_factor(step: int, total_steps: int, *, warmup: float, power: float) -> float:
    """Share of the peak learning rate at `step` (from 0): a linear warm-up, then (1 - progress)^power.

    The warm-up takes `warmup` of all steps; the decay runs over the whole length (Chen et al. 2017, "poly").
    """
    warmup_steps = math.ceil(warmup * total_steps)
    return min(1.0, (step + 1) / max(1, warmup_steps)) * (1 - step / total_steps) ** power


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give every parameter group `factor` times its peak learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


class WeightAverage:
    """Exponential moving average of a model's weights (Polyak averaging), with its own copy of the model.

    The decay grows as (1 + n) / (10 + n) up to `decay`, so that the average forgets the random start. Buffers
    (the statistics of BatchNorm) are copied, not averaged.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.updates = 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)
