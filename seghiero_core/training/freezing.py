"""Which parts of a network learn, and the stages that the parameters of a backbone belong to."""

from __future__ import annotations

import torch
from torch import nn

from seghiero_core.registry import NECK

STAGES = 4
"""Stages of every backbone."""


def backbone_stages(backbone: nn.Module, channels: int = 3) -> dict[str, int]:
    """Find the stage of every parameter of a backbone: the first of C1 to C4 that depends on it.

    The stages are read off the graph of a forward pass, so this works for any backbone that keeps the contract,
    whatever its modules are called. The stem belongs to stage 1; a parameter that no feature map depends on
    counts as stage 4. A neck, the layers that a backbone adds to its published network, is behind all stages.

    Args:
        backbone: A module that maps B,N,H,W to [C1, C2, C3, C4]. It is left as it was.
        channels: N, the channels of its images.

    Returns:
        The stage, 1 to 4, by parameter name; 5 for the neck.
    """
    training = {module: module.training for module in backbone.modules()}
    requires_grad = {parameter: parameter.requires_grad for parameter in backbone.parameters()}
    backbone.eval().requires_grad_(True)
    names, parameters = zip(*backbone.named_parameters(), strict=True)
    stages = dict.fromkeys(names, STAGES)
    with torch.enable_grad():
        maps = backbone(parameters[0].new_zeros(1, channels, 64, 64))
        for stage in range(STAGES, 0, -1):
            gradients = torch.autograd.grad(maps[stage - 1].sum(), parameters, retain_graph=True, allow_unused=True)
            stages |= {name: stage for name, g in zip(names, gradients, strict=True) if g is not None}
    for module, value in training.items():
        module.training = value
    for parameter, value in requires_grad.items():
        parameter.requires_grad_(value)
    return stages | {name: STAGES + 1 for name in names if name.startswith(NECK)}


def freeze(model: nn.Module, how: int | str) -> None:
    """Freeze the backbone of a model, or its first stages. Its neck learns, as it has no published weights.

    Args:
        model: A model with a `backbone`.
        how: "backbone", or the number of stages, 0 to 4.
    """
    if how == "backbone":
        for name, parameter in model.backbone.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and name.startswith(NECK))
    elif how:
        stages = backbone_stages(model.backbone, model.mean.numel())
        for name, parameter in model.backbone.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and stages[name] > how)


def set_training_mode(model: nn.Module, *, freeze_norm: bool) -> None:
    """Put a model into training mode, except for modules whose parameters are all frozen.

    Those stay in eval mode, so a frozen BatchNorm keeps its running mean and variance.

    Args:
        model: The model.
        freeze_norm: Keep every BatchNorm in eval mode; its weight and bias still learn.
    """
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        frozen = bool(parameters) and not any(p.requires_grad for p in parameters)
        if frozen or (freeze_norm and isinstance(module, nn.modules.batchnorm._BatchNorm)):
            module.eval()
