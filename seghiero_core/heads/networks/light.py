"""Two light decoders in the spirit of SegFormer's: 1x1 projections, sums, and little work at C1's size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from seghiero_core.heads.networks.layers import Embedding, init_weights, resize, separable_conv_norm_act


class LightHead(nn.Module):
    """Sum C2, C3 and C4 at C2's size, refine there, then meet C1's detail once.

    A stage is projected at its own size and the context is fused at stride 8, a quarter of the pixels at which the
    full decoder fuses. C1 adds the edges through one projection; only that, one upsampling and the classifier work at
    stride 4.

    Args:
        in_channels_list: channels of C1 to C4.
        num_classes: channels of the logits.
        proj_dim: width of the decoder and of the embedding.
        refine: whether a separable 3x3 convolution follows the sum at stride 8. It widens what a pixel sees by
            neighbours at little cost, and smooths what bilinear upsampling of C4 leaves.
        dropout: probability of dropping a channel before the classifier, in training.
        embedding: whether the embedding exists (at C2's size).
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
        """[C1..C4] -> logits B,num_classes at C1's size and embedding B,proj_dim at C2's size (or None)."""
        c1, c2, *coarser = features
        context = self.projections[0](c2)
        for feature, projection in zip(coarser, self.projections[1:], strict=True):
            context += resize(projection(feature), like=c2)
        context = self.refine(F.relu(self.context_norm(context)))
        x = F.relu(self.norm(self.detail(c1) + resize(context, like=c1)))
        logits = self.classifier(self.dropout(x))
        return logits, None if self.embedding is None else self.embedding(context)
