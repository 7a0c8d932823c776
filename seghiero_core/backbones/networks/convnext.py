"""ConvNeXt of timm, without its classifier, giving all four stages."""

from __future__ import annotations

import timm
import torch
from torch import nn
from torch.nn import functional as F

from seghiero_core.backbones.networks.checkpointing import checkpointed


class ConvNeXt(nn.Module):
    """Stem and stages of a timm ConvNeXt under timm's own names, so that its published weights fit as they are.

    Each output passes a LayerNorm, as in the paper's segmentation models: the residual stream of a stage is not
    normalised. It has no scale and bias of its own. Every head begins with a linear layer, which has both; and where a
    head leaves a stage out, no parameter is left without a gradient.

    Args:
        name: a plain ConvNeXt of timm, for example "convnext_tiny".
        output_stride: 8, 16 or 32; below 32 the last stages are dilated instead of strided.
        drop_path: probability of dropping the deepest residual branch in training; it grows linearly from 0.
        gradient_checkpointing: recompute the blocks in the backward pass instead of keeping their activations.
    """

    def __init__(self, name: str, output_stride: int, drop_path: float, gradient_checkpointing: bool):
        super().__init__()
        net = timm.create_model(name, num_classes=0, output_stride=output_stride, drop_path_rate=drop_path)
        self.stem, self.stages = net.stem, net.stages
        self.gradient_checkpointing = gradient_checkpointing

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """B,3,H,W, H and W at least the output stride -> [C1, C2, C3, C4]."""
        x = self.stem(x)
        features = []
        for stage in self.stages:
            x = stage.downsample(x)
            for block in stage.blocks:
                x = checkpointed(block, x) if self.gradient_checkpointing and self.training else block(x)
            normed = F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], eps=1e-6)
            features.append(normed.permute(0, 3, 1, 2))
        return features
