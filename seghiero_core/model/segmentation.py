"""The assembled network: takes images and returns logits of the same size."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from seghiero_core.heads.networks.layers import conv_norm_act, init_weights


class SegmentationOutput(NamedTuple):
    """Output of a forward pass.

    Attributes:
        logits: B,num_classes,H,W at the input's size, without an activation.
        embedding: B,proj_dim,h,w with unit length along the channels, or None if the head has no embedding branch. Like
            the logits it covers the input without padding, but at the resolution that the head works at.
        auxiliary_logits: B,num_classes,H,W from the auxiliary head, or None in eval mode and without that head.
    """

    logits: torch.Tensor
    embedding: torch.Tensor | None = None
    auxiliary_logits: torch.Tensor | None = None


class AuxiliaryHead(nn.Sequential):
    """A small fully convolutional head on C3 for deep supervision.

    Maps B,in_channels,h,w to B,num_classes,h,w. Reference: Zhao et al. 2017, "Pyramid Scene Parsing Network",
    section 3.3.

    Args:
        in_channels: Channels of C3.
        num_classes: Channels of the logits.
        dropout: Probability of dropping a channel before the classifier in training.
    """

    def __init__(self, in_channels: int, num_classes: int, dropout: float = 0.1):
        width = max(in_channels // 4, 32)
        classifier = nn.Conv2d(width, num_classes, 1)
        super().__init__(conv_norm_act(in_channels, width, 3), nn.Dropout2d(dropout), classifier)
        init_weights(self, classifier)


class SegmentationModel(nn.Module):
    """Normalizes and pads images, runs backbone and head, and resizes the logits to the input's size.

    Accepts any H and W from 1 px. An image is padded at the bottom and right to a multiple of `stride` by repeating its
    last row and column: zeros would add an edge that no photograph has, and reflection needs an image larger than the
    padding. BatchNorm needs more than one value per channel in training, so a training batch of a single image must
    have a side longer than `stride`.

    Args:
        backbone: Maps B,3,H,W to [C1, C2, C3, C4].
        head: Maps [C1, C2, C3, C4] to (logits at C1's size, embedding or None).
        mean, std: Mean and standard deviation (R, G, B in 0..1) of the data that the backbone was trained on.
        stride: Stride of C4, in px.
        auxiliary: Head on C3 that is used only in training.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        *,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        stride: int,
        auxiliary: nn.Module | None = None,
    ):
        super().__init__()
        self.backbone, self.head, self.auxiliary = backbone, head, auxiliary
        self.stride = stride
        self.register_buffer("mean", 255 * torch.tensor(mean).reshape(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(std).reshape(1, 3, 1, 1))

    def forward(self, images: torch.Tensor) -> SegmentationOutput:
        """Segment a batch of images.

        Args:
            images: B,3,H,W, RGB in 0..255, uint8 or float.

        Returns:
            The logits B,num_classes,H,W, the embedding and, in training, the auxiliary logits.
        """
        height, width = images.shape[-2:]
        x = (images.to(self.mean.dtype) - self.mean) / self.std
        # Called even when nothing is padded: a branch on the size would fix the size in an exported graph.
        x = F.pad(x, (0, -width % self.stride, 0, -height % self.stride), mode="replicate")
        features = self.backbone(x)
        logits, embedding = self.head(features)
        if embedding is not None:
            embedding = _crop_to_centers(embedding, x, height, width)
        auxiliary = None
        if self.auxiliary is not None and self.training:
            auxiliary = self._resize_and_crop(self.auxiliary(features[2]), x, height, width)
        return SegmentationOutput(self._resize_and_crop(logits, x, height, width), embedding, auxiliary)

    def _resize_and_crop(self, logits: torch.Tensor, padded: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Resize logits to the padded input and crop the padding away."""
        size = padded.shape[-2:]
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)[..., :height, :width]


def _crop_to_centers(grid: torch.Tensor, padded: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Crop a coarse grid over the padded input to the cells whose centers are in the image, but to at least one."""
    rows, columns = (
        max(1, (2 * cells * side + whole - 1) // (2 * whole))
        for cells, side, whole in zip(grid.shape[-2:], (height, width), padded.shape[-2:], strict=True)
    )
    return grid[..., :rows, :columns]
