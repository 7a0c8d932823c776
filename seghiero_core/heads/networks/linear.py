"""BatchNorm and a linear classifier of each position of one feature map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from seghiero_core.heads.networks.layers import Embedding, init_weights, resize


class LinearHead(nn.Module):
    """Normalizes one map of the backbone, classifies each of its positions, and upsamples the logits.

    A linear classifier commutes with bilinear upsampling, so this equals classifying the upsampled map, at a fraction
    of the cost. With the embedding branch the head is no longer linear, but its logits are.

    Reference: Oquab et al. 2023, "DINOv2: Learning Robust Visual Features without Supervision", section 7.4.

    Args:
        in_channels_list: Channels of C1 to C4.
        num_classes: Channels of the logits.
        proj_dim: Channels of the embedding.
        stage: Which map to read, from 1 for C1 to 4 for C4.
        embedding: Whether to build the embedding branch.
    """

    def __init__(self, in_channels_list: Sequence[int], num_classes: int, proj_dim: int, stage: int, embedding: bool):
        super().__init__()
        channels = in_channels_list[stage - 1]
        self.stage = stage
        self.norm = nn.BatchNorm2d(channels)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        self.embedding = Embedding(channels, proj_dim) if embedding else None
        init_weights(self, self.classifier)

    def forward(self, features: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Compute logits and embedding from one of the four stages of a backbone.

        Args:
            features: [C1, C2, C3, C4], each B,c,h,w.

        Returns:
            The logits B,num_classes,h,w at C1's size, and the embedding B,proj_dim,h,w at the size of the map that is
            read, with unit length along the channels, or None without the embedding branch.
        """
        x = self.norm(features[self.stage - 1])
        logits = resize(self.classifier(x), like=features[0])
        return logits, None if self.embedding is None else self.embedding(x)
