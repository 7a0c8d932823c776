"""DeepLabV3+ decoder (Chen et al. 2018, "Encoder-Decoder with Atrous Separable Convolution")."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from seghiero_core.heads.networks.layers import Embedding, conv_norm_act, init_weights, resize, separable_conv_norm_act

SKIP_CHANNELS = 48
"""Width that C1 is reduced to, so that it doesn't outweigh the pyramid (section 4.1 of the paper)."""


class ASPPHead(nn.Module):
    """Atrous pyramid with image pooling on C4, then C1's detail and two separable convolutions at C1's size.

    The pooled branch sees one value per channel and image. Batch statistics of it would be those of B numbers (none at
    all for B = 1), so it is normalised over its channels instead, one image at a time. Its share of the projection is
    computed once per image and broadcast, which equals concatenating the upsampled map.

    Args:
        in_channels_list: channels of C1 to C4.
        num_classes: channels of the logits.
        proj_dim: width of the pyramid's branches, of the decoder, and of the embedding.
        dilations: of the three atrous branches, in C4's pixels.
        dropout: probability of dropping a channel before the classifier, in training.
        embedding: whether the embedding exists.
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
        """[C1..C4] -> logits B,num_classes and embedding B,proj_dim (or None), both at C1's size."""
        c1, _, _, c4 = features
        pyramid = torch.cat([branch(c4) for branch in self.branches], dim=1)
        pooled = self.pool(c4.mean(dim=(2, 3), keepdim=True))
        context = F.relu(self.project_norm(self.project(pyramid) + pooled))
        x = self.decode(torch.cat([resize(context, like=c1), self.skip(c1)], dim=1))
        logits = self.classifier(self.dropout(x))
        return logits, None if self.embedding is None else self.embedding(x)
