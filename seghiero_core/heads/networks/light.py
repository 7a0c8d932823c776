"""The two light SegFormer decoders: 1x1 projections and sums, with little computation at C1's size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from seghiero_core.heads.networks.layers import Embedding, init_weights, resize, separable_conv_norm_act


class LightHead(nn.Module):
    """Sums C2, C3 and C4 at C2's size, optionally refines the sum, then adds C1.

    Each stage is projected at its own size, and C2 to C4 are summed at stride 8, which has a quarter of the pixels at
    which the full SegFormer decoder fuses. C1 adds the edges through one projection. Only that projection, one
    upsampling and the classifier run at stride 4. A variation on the decoder of Xie et al. 2021 (SegFormer).

    Args:
        in_channels_list: Channels of C1 to C4.
        num_classes: Channels of the logits.
        proj_dim: Channels of the decoder and of the embedding.
        refine: Whether a separable 3x3 convolution follows the sum at stride 8. It enlarges the receptive field at
            little cost and smooths the artifacts of upsampling C4 bilinearly.
        dropout: Probability of dropping a channel before the classifier in training.
        embedding: Whether to build the embedding branch, at C2's size.
    """

    def __init__(
        self,
        in_channels_list: Sequence[int],
        num_classes: int,
        proj_dim: int,
        refine: bool,
        dropout: float,
        embedding: bool,
    ):
        super().__init__()
        c1, *deeper = in_channels_list
        self.detail = nn.Conv2d(c1, proj_dim, 1, bias=False)
        self.projections = nn.ModuleList(nn.Conv2d(c, proj_dim, 1, bias=False) for c in deeper)
        self.context_norm = nn.BatchNorm2d(proj_dim)
        self.refine = separable_conv_norm_act(proj_dim, proj_dim) if refine else nn.Identity()
        self.norm = nn.BatchNorm2d(proj_dim)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(proj_dim, num_classes, 1)
        self.embedding = Embedding(proj_dim, proj_dim) if embedding else None
        init_weights(self, self.classifier)

    def forward(self, features: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Compute logits and embedding from the four stages of a backbone.

        Args:
            features: [C1, C2, C3, C4], each B,c,h,w.

        Returns:
            The logits B,num_classes,h,w at C1's size, and the embedding B,proj_dim,h,w at C2's size with unit length
            along the channels, or None without the embedding branch.
        """
        c1, c2, *coarser = features
        context = self.projections[0](c2)
        for feature, projection in zip(coarser, self.projections[1:], strict=True):
            context += resize(projection(feature), like=c2)
        context = self.refine(F.relu(self.context_norm(context)))
        x = F.relu(self.norm(self.detail(c1) + resize(context, like=c1)))
        logits = self.classifier(self.dropout(x))
        return logits, None if self.embedding is None else self.embedding(context)
