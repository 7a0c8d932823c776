"""ResNet from timm without its classifier, returning all four stages."""

from __future__ import annotations

import timm
import torch
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from seghiero_core.backbones.networks.checkpointing import checkpointed


class ResNet(nn.Module):
    """Stem and stages of a timm ResNet, with timm's parameter names so that its published weights load unchanged.

    Reference: He et al. 2016, "Deep Residual Learning for Image Recognition".

    Args:
        name: Name of a plain ResNet in timm, for example "resnet50".
        output_stride: Stride of C4 in px: 8, 16 or 32. Below 32 the last stages are dilated instead of strided.
        drop_path: Probability of dropping the deepest residual branch in training; it grows linearly from 0.
        gradient_checkpointing: Whether to recompute the blocks in the backward pass to save memory.
    """

    def __init__(self, name: str, output_stride: int, drop_path: float, gradient_checkpointing: bool):
        super().__init__()
        # By default timm initializes the last norm of each block to zero. AdamW moves such a scale by about one
        # learning rate per step, so a network trained from scratch would stay shallow for its first thousand steps.
        net = timm.create_model(
            name, num_classes=0, output_stride=output_stride, drop_path_rate=drop_path, zero_init_last=False
        )
        self.conv1, self.bn1, self.act1, self.maxpool = net.conv1, net.bn1, net.act1, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4
        self.gradient_checkpointing = gradient_checkpointing

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Compute the features of a batch of images.

        Args:
            x: B,3,H,W, normalized; H and W at least 1 px.

        Returns:
            [C1, C2, C3, C4], each B,c,h,w with the channels of its stage and at stride 4, 8, 16, 32 (C3 and C4 at most
            `output_stride`).
        """
        x = checkpointed(self.bn1, self.conv1(x), part=lambda x: self.maxpool(self.act1(self.bn1(x))))
        features = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                if self.gradient_checkpointing:
                    x = checkpointed(block, x)
                else:  # the first two stages have the largest maps and the fewest channels
                    x = _run_block(block, x) if stage in (self.layer1, self.layer2) else block(x)
            features.append(x)
        return features


def _run_block(block: BasicBlock | Bottleneck, x: torch.Tensor) -> torch.Tensor:
    """Run a block that stores little for the backward pass, which recomputes the rest but for the 3x3 convolutions."""
    shortcut = x if block.downsample is None else block.downsample(x)
    x = block.conv1(x)
    x = checkpointed(block, x, part=lambda x: block.conv2(block.act1(block.bn1(x))))
    if isinstance(block, Bottleneck):
        x = checkpointed(block, x, part=lambda x: block.bn3(block.conv3(block.act2(block.bn2(x)))))
    else:
        x = block.bn2(x)
    x = (x if block.drop_path is None else block.drop_path(x)) + shortcut
    return block.act3(x) if isinstance(block, Bottleneck) else block.act2(x)
