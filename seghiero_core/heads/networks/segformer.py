"""The all-MLP decoder of SegFormer (Xie et al. 2021), at a third of its usual cost."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from seghiero_core.backbones.networks.checkpointing import checkpointed
from seghiero_core.heads.networks.layers import Embedding, init_weights, resize


class SegFormerHead(nn.Module):
    """Projects each stage to one width, upsamples, concatenates, fuses with a 1x1 convolution and classifies.

    The result is the published decoder's, computed in a cheaper order. A 1x1 convolution commutes with bilinear
    upsampling, and a convolution of a concatenation is a sum of one convolution per stage. So the projection and the
    fusion of each stage are multiplied into one matrix, each stage is convolved once at its own size, and the upsampled
    results are added. No tensor of 4 * proj_dim channels is ever created. In eval mode the BatchNorm is folded into the
    same matrices.

    The parameters are those of the published decoder, under the names that transformers uses.

    Reference: Xie et al. 2021, "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers",
    section 3.2.

    Args:
        in_channels_list: Channels of C1 to C4.
        num_classes: Channels of the logits.
        proj_dim: Channels of the decoder and of the embedding.
        dropout: Probability of dropping a channel before the classifier in training.
        embedding: Whether to build the embedding branch.
    """

    def __init__(
        self, in_channels_list: Sequence[int], num_classes: int, proj_dim: int, dropout: float, embedding: bool
    ):
        super().__init__()
        self.linear_projections = nn.ModuleList(nn.Linear(c, proj_dim) for c in in_channels_list)
        self.linear_fuse = nn.Conv2d(len(in_channels_list) * proj_dim, proj_dim, 1, bias=False)
        self.batch_norm = nn.BatchNorm2d(proj_dim)
        self.dropout = nn.Dropout2d(dropout)  # per channel, as in the paper's code; an element-wise mask is slower
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
        c1 = features[0]
        kernels, bias = self._stage_kernels()
        x = F.conv2d(c1, kernels[0], bias)
        for feature, kernel in zip(features[1:], kernels[1:], strict=True):
            x += resize(F.conv2d(feature, kernel), like=c1)
        if self.embedding is None:
            return checkpointed(self, x, part=self._classify), None
        x = self._norm_act(x)
        return self.classifier(self.dropout(x)), self.embedding(x)

    def _norm_act(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu_(self.batch_norm(x)) if self.training else F.relu_(x)

    def _classify(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the logits; in training with little memory, since the rest is cheap to compute again."""
        return self.classifier(self.dropout(self._norm_act(x)))

    def _stage_kernels(self) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Return one 1x1 kernel (proj_dim,C,1,1) per stage and the bias (proj_dim) of their sum, in float32."""
        device = self.linear_fuse.weight.device.type
        # The meta device, used to infer shapes, has no autocast to disable.
        with torch.autocast(device if torch.amp.is_autocast_available(device) else "cpu", enabled=False):
            fuse = self.linear_fuse.weight.flatten(1)
            shift = None
            if not self.training:
                norm = self.batch_norm
                scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
                shift = norm.bias - norm.running_mean * scale
                fuse = fuse * scale[:, None]
            # The published decoder concatenates from the coarsest stage to the finest.
            stage_fuse = fuse.chunk(len(self.linear_projections), dim=1)[::-1]
            pairs = list(zip(stage_fuse, self.linear_projections, strict=True))
            kernels = [(weight @ linear.weight)[:, :, None, None] for weight, linear in pairs]
            bias = sum(weight @ linear.bias for weight, linear in pairs)
        return kernels, bias if shift is None else bias + shift
