"""Which parts of a network learn, and how fast its backbone's stages do."""

from __future__ import annotations

import torch
from torch import nn

STAGES = 4


def backbone_stages(backbone: nn.Module) -> dict[str, int]:
    """The stage (1 to 4) of every parameter of a backbone, by name: the first of C1..C4 that depends on it.

    Found from the graph of a forward pass, so it holds for any backbone that keeps the contract, however its modules
    are named. The stem belongs to stage 1; a parameter that no map depends on counts as stage 4.
    """
    training = {module: module.training for module in backbone.modules()}
    asked = {parameter: parameter.requires_grad for parameter in backbone.parameters()}
    backbone.eval().requires_grad_(True)
    names, parameters = zip(*backbone.named_parameters(), strict=True)
    stages = dict.fromkeys(names, STAGES)
    with torch.enable_grad():
        maps = backbone(parameters[0].new_zeros(1, 3, 64, 64))
        for stage in range(STAGES, 0, -1):
            gradients = torch.autograd.grad(maps[stage - 1].sum(), parameters, retain_graph=True, allow_unused=True)
            stages |= {name: stage for name, g in zip(names, gradients, strict=True) if g is not None}
    for module, was in training.items():
        module.training = was
    for parameter, was in asked.items():
        parameter.requires_grad_(was)
    return stages


def freeze(model: nn.Module, how: int | str) -> None:
    """Let `model.backbone` (`how` is "backbone") or its first `how` stages learn nothing."""
    if how == "backbone":
        model.backbone.requires_grad_(False)
    elif how:
        stages = backbone_stages(model.backbone)
        for name, parameter in model.backbone.named_parameters():
            parameter.requires_grad_(stages[name] > how)


def set_training_mode(model: nn.Module, *, freeze_norm: bool) -> None:
    """`model.train()`, but a module whose parameters are all frozen stays in eval mode, and so keeps its statistics.

    With `freeze_norm` every BatchNorm normalises by its running statistics and leaves them; its weight and bias learn.
    """
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        frozen = bool(parameters) and not any(p.requires_grad for p in parameters)
        if frozen or (freeze_norm and isinstance(module, nn.modules.batchnorm._BatchNorm)):
            module.eval()
