"""The all-MLP decoder of SegFormer (Xie et al. 2021, section 3.2), at a third of its usual cost."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from seghiero_core.heads.networks.layers import Embedding, init_weights, resize


class SegFormerHead(nn.Module):
    """Project each stage to one width, upsample, concatenate, fuse by a 1x1 convolution, classify.

    That is what it computes, not how. A 1x1 convolution commutes with bilinear upsampling, and the fusing convolution
    of a concatenation is a sum of one convolution per stage. So the two matrices of a stage are multiplied first, each
    stage is convolved once at its own size, and the upsampled results are added: no map of 4 * proj_dim channels ever
    exists. In eval mode the BatchNorm is multiplied into the same matrices.

    The parameters are those of the published decoder, under the names that transformers uses.

    Args:
        in_channels_list: channels of C1 to C4.
        num_classes: channels of the logits.
        proj_dim: width of the decoder and of the embedding.
        dropout: probability of dropping a channel before the classifier, in training.
        embedding: whether the embedding exists.
    """

    def __init__(
        self, in_channels_list: Sequence[int], num_classes: int, proj_dim: int, dropout: float, embedding: bool
    ):
        super().__init__()
        self.linear_projections = nn.ModuleList(nn.Linear(c, proj_dim) for c in in_channels_list)
        self.linear_fuse = nn.Conv2d(len(in_channels_list) * proj_dim, proj_dim, 1, bias=False)
        self.batch_norm = nn.BatchNorm2d(proj_dim)
        self.dropout = nn.Dropout2d(dropout)  # per channel, as the paper's code; an element-wise mask costs much more
        self.classifier = nn.Conv2d(proj_dim, num_classes, 1)
        self.embedding = Embedding(proj_dim, proj_dim) if embedding else None
        init_weights(self, self.classifier)

    def forward(self, features: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[C1..C4] -> logits B,num_classes and embedding B,proj_dim (or None), both at C1's size."""
        c1 = features[0]
        kernels, bias = self._stage_kernels()
        x = F.conv2d(c1, kernels[0], bias)
        for feature, kernel in zip(features[1:], kernels[1:], strict=True):
            x += resize(F.conv2d(feature, kernel), like=c1)
        if self.training:
            x = self.batch_norm(x)
        x = F.relu_(x)
        logits = self.classifier(self.dropout(x))
        return logits, None if self.embedding is None else self.embedding(x)

    def _stage_kernels(self) -> tuple[list[torch.Tensor], torch.Tensor]:
        """One 1x1 kernel proj_dim,C,1,1 per stage, and the bias proj_dim of their sum; both in float32."""
        device = self.linear_fuse.weight.device.type
        # Shapes are worked out on the meta device too, which has no autocast to switch off.
        with torch.autocast(device if torch.amp.is_autocast_available(device) else "cpu", enabled=False):
            fuse = self.linear_fuse.weight.flatten(1)
            shift = None
            if not self.training:
                norm = self.batch_norm
                scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
                shift = norm.bias - norm.running_mean * scale
                fuse = fuse * scale[:, None]
            # The published decoder concatenates from the coarsest stage to the finest.
            shares = fuse.chunk(len(self.linear_projections), dim=1)[::-1]
            pairs = list(zip(shares, self.linear_projections, strict=True))
            kernels = [(share @ linear.weight)[:, :, None, None] for share, linear in pairs]
            bias = sum(share @ linear.bias for share, linear in pairs)
        return kernels, bias if shift is None else bias + shift
