"""What several heads share: a normed convolution, resizing, the embedding branch, and how new weights start."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


def conv_norm_act(in_channels: int, out_channels: int, kernel_size: int = 1, dilation: int = 1) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU, keeping H and W."""
    padding = dilation * (kernel_size // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def separable_conv_norm_act(in_channels: int, out_channels: int, dilation: int = 1) -> nn.Sequential:
    """3x3 depthwise then 1x1 convolution with BatchNorm and ReLU (after Chen et al. 2018), keeping H and W.

    The paper has a BatchNorm and ReLU between the two as well. At C1's size these cost as much as the convolutions.
    """
    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, 3, padding=dilation, dilation=dilation, groups=in_channels, bias=False),
        *conv_norm_act(in_channels, out_channels),
    )


def resize(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`x` B,C,h,w bilinearly at the H,W of `like`."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


class Embedding(nn.Module):
    """Pixel embedding of unit length for metric losses: a two-layer projection (Chen et al. 2020, SimCLR)."""

    def __init__(self, in_channels: int, proj_dim: int):
        super().__init__()
        self.hidden = conv_norm_act(in_channels, in_channels)
        self.project = nn.Conv2d(in_channels, proj_dim, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """B,C,H,W -> B,proj_dim,H,W, float32 under autocast too, so that lengths are 1 to float32's precision."""
        return F.normalize(self.project(self.hidden(x)).float(), dim=1)


def init_weights(head: nn.Module, classifier: nn.Conv2d) -> None:
    """Convolutions He-normal by fan-in (right for depthwise ones too); the classifier stays as PyTorch starts it.

    A classifier that starts near zero (std 0.01, as detectors have it) passes next to no gradient on: rare classes then
    take several times as many steps to appear.
    """
    for module in head.modules():
        if isinstance(module, nn.Conv2d) and module is not classifier:
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
