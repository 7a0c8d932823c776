"""The assembled network: images in, logits at their size out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from seghiero_core.heads.networks.layers import conv_norm_act, init_weights


class SegmentationOutput(NamedTuple):
    """What a forward pass gives.

    Attributes:
        logits: B,num_classes,H,W at the input's size, raw.
        embedding: B,proj_dim,h,w of unit length along the channels, or None where it is not built. It covers the
            padded input, at the size the head works at.
        auxiliary_logits: B,num_classes,H,W of the auxiliary head, in training only.
    """

    logits: torch.Tensor
    embedding: torch.Tensor | None = None
    auxiliary_logits: torch.Tensor | None = None


class AuxiliaryHead(nn.Sequential):
    """A small fully convolutional head on C3, for deep supervision (Zhao et al. 2017, PSPNet)."""

    def __init__(self, in_channels: int, num_classes: int, dropout: float = 0.1):
        width = max(in_channels // 4, 32)
        classifier = nn.Conv2d(width, num_classes, 1)
        super().__init__(conv_norm_act(in_channels, width, 3), nn.Dropout2d(dropout), classifier)
        init_weights(self, classifier)


class SegmentationModel(nn.Module):
    """Normalise, pad, backbone, head, upsample, crop.

    Any H and W from 1 are taken. The image is padded at the bottom and right, to a multiple of `stride`, by repeating
    its last row and column: zeros would draw an edge that no photograph has, and reflection needs an image larger than
    the padding. In training, a BatchNorm needs more than one value per channel, so a batch of one image must then be
    larger than `stride` along one side.

    Args:
        backbone: B,3,H,W -> [C1, C2, C3, C4].
        head: [C1, C2, C3, C4] -> (logits at C1's size, embedding or None).
        mean, std: of R, G, B in 0..1, of the data that the backbone was trained on.
        stride: C4's stride.
        auxiliary: a head on C3 that is used in training only.
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
        """B,3,H,W of RGB in 0..255, uint8 or float -> logits at H,W, the embedding, auxiliary logits."""
        height, width = images.shape[-2:]
        x = (images.to(self.mean.dtype) - self.mean) / self.std
        # Always called, also for no padding: a branch on the size would fix it in an exported graph.
        x = F.pad(x, (0, -width % self.stride, 0, -height % self.stride), mode="replicate")
        features = self.backbone(x)
        logits, embedding = self.head(features)
        auxiliary = None
        if self.auxiliary is not None and self.training:
            auxiliary = self._at_input_size(self.auxiliary(features[2]), x, height, width)
        return SegmentationOutput(self._at_input_size(logits, x, height, width), embedding, auxiliary)

    def _at_input_size(self, logits: torch.Tensor, padded: torch.Tensor, height: int, width: int) -> torch.Tensor:
        size = padded.shape[-2:]
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)[..., :height, :width]
