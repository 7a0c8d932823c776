"""The parts of a backbone's neck that a head has no use for."""

from __future__ import annotations

import torch
from torch.utils._pytree import tree_leaves

from seghiero_core.model.segmentation import SegmentationModel
from seghiero_core.registry import NECK

_SIDE = 64
"""Side of the images of the trial, px."""


def freeze_unread_neck(model: SegmentationModel) -> None:
    """Freeze the parameters of a backbone's neck that no output depends on, such as those of C2 if no head reads it.

    They would never have a gradient, which DistributedDataParallel takes for a mistake.

    Args:
        model: The model, in training mode. Apart from that it is left as it was.
    """
    neck = [parameter for name, parameter in model.backbone.named_parameters() if name.startswith(NECK)]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    images = model.mean.new_zeros(2, model.mean.numel(), _SIDE, _SIDE)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        outputs = [each for each in tree_leaves(tuple(model(images))) if isinstance(each, torch.Tensor)]
        total = sum(output.sum() for output in outputs if output.requires_grad)
        gradients = torch.autograd.grad(total, neck, allow_unused=True)
    for parameter, gradient in zip(neck, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)
