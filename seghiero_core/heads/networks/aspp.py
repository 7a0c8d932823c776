"""Decoder of DeepLabV3+ (Chen et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from seghiero_core.backbones.networks.checkpointing import checkpointed
from seghiero_core.heads.networks.layers import Embedding, conv_norm_act, init_weights, resize, separable_conv_norm_act

SKIP_CHANNELS = 48
"""Channels that C1 is reduced to, so that it doesn't outweigh the pyramid (section 4.1 of the paper)."""


class ASPPHead(nn.Module):
    """Atrous pyramid with image pooling on C4, combined with C1 and refined by two separable convolutions.

    The pooled branch has one value per channel and image. BatchNorm would compute its statistics from only B values
    (and fail for B = 1), so this branch is normalized over its channels, each image by itself. Its part of the
    projection is computed once per image and broadcast, which equals concatenating the upsampled map.

    Reference: Chen et al. 2018, "Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation".

    Args:
        in_channels_list: Channels of C1 to C4.
        num_classes: Channels of the logits.
        proj_dim: Channels of the pyramid's branches, of the decoder and of the embedding.
        dilations: Dilation of each of the three atrous branches, in pixels of C4.
        dropout: Probability of dropping a channel before the classifier in training.
        embedding: Whether to build the embedding branch.
    """

    def __init__(
        self,
        in_channels_list: Sequence[int],
        num_classes: int,
        proj_dim: int,
        dilations: Sequence[int],
        dropout: float,
        embedding: bool,
    ):
        super().__init__()
        c1, _, _, c4 = in_channels_list
        self.branches = nn.ModuleList(
            [conv_norm_act(c4, proj_dim)] + [separable_conv_norm_act(c4, proj_dim, dilation) for dilation in dilations]
        )
        self.pool = nn.Sequential(
            nn.Conv2d(c4, proj_dim, 1, bias=False),
            nn.GroupNorm(1, proj_dim),
            nn.ReLU(inplace=True),
            nn.Conv2d(proj_dim, proj_dim, 1, bias=False),
        )
        self.project = nn.Conv2d(len(self.branches) * proj_dim, proj_dim, 1, bias=False)
        self.project_norm = nn.BatchNorm2d(proj_dim)
        self.skip = conv_norm_act(c1, SKIP_CHANNELS)
        self.decode = nn.Sequential(
            separable_conv_norm_act(proj_dim + SKIP_CHANNELS, proj_dim),
            separable_conv_norm_act(proj_dim, proj_dim),
        )
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(proj_dim, num_classes, 1)
        self.embedding = Embedding(proj_dim, proj_dim) if embedding else None
        init_weights(self, self.classifier)

    def forward(self, features: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Compute logits and embedding from the four stages of a backbone.

        Args:
            features: [C1, C2, C3, C4], each B,c,h,w.

        Returns:
            The logits B,num_classes,h,w at C1's size, and the embedding B,proj_dim,h,w at C1's size with unit length
            along the channels, or None without the embedding branch.
        """
        c1, _, _, c4 = features
        pyramid = torch.cat([branch(c4) for branch in self.branches], dim=1)
        pooled = self.pool(c4.mean(dim=(2, 3), keepdim=True))
        context = F.relu(self.project_norm(self.project(pyramid) + pooled))
        x = checkpointed(self, context, self.skip(c1), part=self._combine)
        x = checkpointed(self, x, part=self._refine)
        if self.embedding is None:
            return checkpointed(self, x, part=self._classify), None
        x = self.decode[1].norm_act(x)
        return self.classifier(self.dropout(x)), self.embedding(x)

    # In training, what these compute up to their last convolution is computed again in the backward pass: at C1's size
    # it takes more memory than all of the pyramid.

    def _combine(self, context: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return self.decode[0].convolve(resize(context, like=skip), skip)

    def _refine(self, x: torch.Tensor) -> torch.Tensor:
        return self.decode[1].convolve(self.decode[0].norm_act(x))

    def _classify(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.dropout(self.decode[1].norm_act(x)))
