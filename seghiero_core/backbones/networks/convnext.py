"""ConvNeXt from timm without its classifier, returning all four stages."""

from __future__ import annotations

import timm
import torch
from timm.models.convnext import ConvNeXtBlock
from torch import nn
from torch.nn import functional as F

from seghiero_core.backbones.networks.checkpointing import checkpointed


class ConvNeXt(nn.Module):
    """Stem and stages of a timm ConvNeXt, with timm's parameter names so that its published weights load unchanged.

    Each output passes a LayerNorm over the channels, as in the paper's segmentation models, because the residual stream
    of a stage is not normalized. This LayerNorm has no weight and bias: every head starts with a linear layer, which
    has both, and a head that ignores a stage leaves no parameter without a gradient.

    Reference: Liu et al. 2022, "A ConvNet for the 2020s".

    Args:
        name: Name of a plain ConvNeXt in timm, for example "convnext_tiny".
        output_stride: Stride of C4 in px: 8, 16 or 32. Below 32 the last stages are dilated instead of strided.
        drop_path: Probability of dropping the deepest residual branch in training; it grows linearly from 0.
        gradient_checkpointing: Whether to recompute the blocks in the backward pass to save memory.
    """

    def __init__(self, name: str, output_stride: int, drop_path: float, gradient_checkpointing: bool):
        super().__init__()
        net = timm.create_model(name, num_classes=0, output_stride=output_stride, drop_path_rate=drop_path)
        self.stem, self.stages = net.stem, net.stages
        self.gradient_checkpointing = gradient_checkpointing

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Compute the features of a batch of images.

        Args:
            x: B,3,H,W, normalized; H and W at least `output_stride` px.

        Returns:
            [C1, C2, C3, C4], each B,c,h,w with the channels of its stage and at stride 4, 8, 16, 32 (C3 and C4 at most
            `output_stride`).
        """
        x = self.stem(x)
        features = []
        for number, stage in enumerate(self.stages):
            x = stage.downsample(x)
            for block in stage.blocks:
                if self.gradient_checkpointing:
                    x = checkpointed(block, x)
                else:  # the first two stages have the largest maps
                    x = _run_block(block, x) if number < 2 else block(x)
            normed = F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], eps=1e-6)
            features.append(normed.permute(0, 3, 1, 2))
        return features


def _run_block(block: ConvNeXtBlock, x: torch.Tensor) -> torch.Tensor:
    """Run a block that doesn't store what its norm and activation return, which the backward pass recomputes."""
    mlp = block.mlp
    hidden = checkpointed(block, block.conv_dw(x), part=lambda x: mlp.fc1(block.norm(x.permute(0, 2, 3, 1))))
    reduced = checkpointed(block, hidden, part=lambda x: mlp.fc2(mlp.act(x)))
    return block.drop_path(reduced.permute(0, 3, 1, 2) * block.gamma.reshape(1, -1, 1, 1)) + block.shortcut(x)
