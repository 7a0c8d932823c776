"""Parameter groups, the learning rate's schedule and the running average of the weights."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from seghiero_core.config.schema import TrainingConfig
from seghiero_core.training.freezing import STAGES, backbone_stages


def make_optimizer(model: nn.Module, training: TrainingConfig, *, pretrained: bool) -> torch.optim.AdamW:
    """AdamW with two learning rates and no weight decay on biases and norms, over what isn't frozen.

    The backbone's is `training.backbone_lr`, by default a tenth of `training.lr` for a pretrained one and the same
    otherwise. It is that of the last stage; every stage before learns at `training.layer_decay` of the rate of the
    next (layer-wise decay, Clark et al. 2020, ELECTRA, with stages for layers). Each group keeps its peak rate as
    `peak_lr`.
    """
    backbone_lr = training.backbone_lr or training.lr * (0.1 if pretrained else 1.0)
    stages = backbone_stages(model.backbone) if training.layer_decay < 1 else {}
    members: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            in_backbone = name.startswith("backbone.")
            stage = stages.get(name.removeprefix("backbone."), STAGES) if in_backbone else STAGES + 1
            members.setdefault((stage, parameter.ndim <= 1), []).append(parameter)
    groups = []
    for (stage, spared), parameters in sorted(members.items(), key=lambda item: item[0]):
        lr = training.lr if stage > STAGES else backbone_lr * training.layer_decay ** (STAGES - stage)
        weight_decay = 0.0 if spared else training.weight_decay
        groups.append({"params": parameters, "lr": lr, "peak_lr": lr, "weight_decay": weight_decay})
    return torch.optim.AdamW(groups, fused=True)  # on two CPU cores a fifth of the default's time


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

    The decay grows as (1 + n) / (10 + n) up to `decay`, so that the average forgets the random start. The statistics
    of BatchNorm are averaged alike: those of one step's weights don't fit the average's; integers are copied.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.updates = 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))
        mine, theirs = zip(*[pair for pair in pairs if pair[0].is_floating_point()], strict=True)
        torch._foreach_lerp_(mine, theirs, 1 - decay)
        for count, new in pairs:
            if not count.is_floating_point():
                count.copy_(new)
