"""Layers that several heads share: convolutions, resizing, the embedding branch and initialization."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from seghiero_core.backbones.networks.checkpointing import checkpointed


def conv_norm_act(in_channels: int, out_channels: int, kernel_size: int = 1, dilation: int = 1) -> nn.Sequential:
    """Build a convolution with BatchNorm and ReLU that keeps H and W.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Size of the kernel in px, odd.
        dilation: Distance between the kernel's taps in px.

    Returns:
        A module from B,in_channels,H,W to B,out_channels,H,W.
    """
    padding = dilation * (kernel_size // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def separable_conv_norm_act(in_channels: int, out_channels: int, dilation: int = 1) -> nn.Sequential:
    """Build a depthwise 3x3 and a 1x1 convolution, followed by BatchNorm and ReLU, that keep H and W.

    Chen et al. 2018 (DeepLabV3+) also have BatchNorm and ReLU between the two. They are left out here because at C1's
    size they cost as much as the convolutions.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        dilation: Distance between the taps of the 3x3 kernel in px.

    Returns:
        A module from B,in_channels,H,W to B,out_channels,H,W.
    """
    return SeparableConv(DepthwiseConv(in_channels, dilation), *conv_norm_act(in_channels, out_channels))


class SeparableConv(nn.Sequential):
    """A depthwise and a 1x1 convolution, followed by BatchNorm and ReLU.

    In training the output of the depthwise convolution, which costs little time but as much memory as the input, is
    computed again in the backward pass instead of stored.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply all layers.

        Args:
            x: B,c,H,W.

        Returns:
            B,C,H,W.
        """
        return self.norm_act(checkpointed(self, x, part=self.convolve))

    def convolve(self, *maps: torch.Tensor) -> torch.Tensor:
        """Apply the two convolutions to the concatenation of maps, which is never created.

        Args:
            *maps: B,c,H,W with the channels of the input in sum.

        Returns:
            B,C,H,W.
        """
        depthwise, pointwise = self[:2]
        if len(maps) == 1:
            return pointwise(depthwise(maps[0]))
        sizes = [x.shape[1] for x in maps]
        total = None
        for x, kernels, weight in zip(
            maps, depthwise.weight.split(sizes), pointwise.weight.split(sizes, 1), strict=True
        ):
            part = F.conv2d(F.conv2d(x, kernels, padding=1, groups=len(kernels)), weight)
            total = part if total is None else total.add_(part)
        return total

    def norm_act(self, x: torch.Tensor) -> torch.Tensor:
        """Apply BatchNorm and ReLU.

        Args:
            x: B,C,H,W.

        Returns:
            B,C,H,W.
        """
        return self[3](self[2](x))


class DepthwiseConv(nn.Conv2d):
    """Depthwise 3x3 convolution that keeps H and W and is fast on the CPU at any dilation.

    PyTorch's CPU kernels for dilated depthwise convolutions are several times as slow as for plain ones. A convolution
    with dilation d doesn't mix the d x d grids of every d-th pixel, so each grid is convolved as an image of its own,
    which gives the same numbers.

    Args:
        channels: Channels of the input and output.
        dilation: Distance between the kernel's taps in px.
    """

    def __init__(self, channels: int, dilation: int = 1):
        super().__init__(channels, channels, 3, padding=dilation, dilation=dilation, groups=channels, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve a map.

        Args:
            x: B,channels,H,W.

        Returns:
            B,channels,H,W.
        """
        step = self.dilation[0]
        if step == 1 or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        batch, channels, height, width = x.shape
        if step >= height and step >= width:  # all taps but the center are in the padding
            dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
            return x.to(dtype) * self.weight[:, 0, 1, 1, None, None].to(dtype)
        rows, columns = (height + step - 1) // step, (width + step - 1) // step
        x = F.pad(x.permute(0, 2, 3, 1), (0, 0, 0, columns * step - width, 0, rows * step - height))
        grids = x.reshape(batch, rows, step, columns, step, channels).permute(0, 2, 4, 1, 3, 5)
        grids = grids.reshape(-1, rows, columns, channels).permute(0, 3, 1, 2)
        grids = F.conv2d(grids, self.weight, padding=1, groups=channels).permute(0, 2, 3, 1)
        x = grids.reshape(batch, step, step, rows, columns, channels).permute(0, 3, 1, 4, 2, 5)
        x = x.reshape(batch, rows * step, columns * step, channels)[:, :height, :width]
        return x.permute(0, 3, 1, 2)


def resize(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Resize a tensor bilinearly to the height and width of another.

    Args:
        x: B,C,h,w.
        like: A tensor ...,H,W of the wanted size.

    Returns:
        `x` resized to B,C,H,W.
    """
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


class Embedding(nn.Module):
    """Two-layer projection to pixel embeddings of unit length, for metric learning losses.

    Reference: Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations" (SimCLR).

    Args:
        in_channels: Channels of the input.
        proj_dim: Channels of the embedding.
    """

    def __init__(self, in_channels: int, proj_dim: int):
        super().__init__()
        self.hidden = conv_norm_act(in_channels, in_channels)
        self.project = nn.Conv2d(in_channels, proj_dim, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the embedding of each pixel.

        Args:
            x: B,in_channels,H,W.

        Returns:
            B,proj_dim,H,W with unit length along the channels, in float32 even under autocast.
        """
        return F.normalize(self.project(self.hidden(x)).float(), dim=1)


def init_weights(head: nn.Module, classifier: nn.Conv2d) -> None:
    """Initialize a head's convolutions with He-normal weights by fan-in, and leave its classifier unchanged.

    The classifier keeps PyTorch's default. With weights near zero (std 0.01, as is common for detectors) it would pass
    back almost no gradient, and rare classes would take several times as many steps to appear.

    Reference: He et al. 2015, "Delving Deep into Rectifiers".

    Args:
        head: The module whose convolutions are initialized in place.
        classifier: The convolution in `head` that is left as it is.
    """
    for module in head.modules():
        if isinstance(module, nn.Conv2d) and module is not classifier:
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
