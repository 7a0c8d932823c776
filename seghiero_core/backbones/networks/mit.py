"""MiT-B0 to B5 of transformers, giving all four stages."""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers.models.segformer.configuration_segformer import SegformerConfig
from transformers.models.segformer.modeling_segformer import SegformerModel

from seghiero_core.backbones.networks.checkpointing import checkpointed

_WIDE = (64, 128, 320, 512)
# Blocks of each stage, widths of each stage, and the width of the decoder that was published with it.
_SIZES = {
    "mit-b0": ((2, 2, 2, 2), (32, 64, 160, 256), 256),
    "mit-b1": ((2, 2, 2, 2), _WIDE, 256),
    "mit-b2": ((3, 4, 6, 3), _WIDE, 768),
    "mit-b3": ((3, 4, 18, 3), _WIDE, 768),
    "mit-b4": ((3, 8, 27, 3), _WIDE, 768),
    "mit-b5": ((3, 6, 40, 3), _WIDE, 768),
}


def mit_config(variant: str, drop_path: float = 0.1) -> SegformerConfig:
    """The configuration of `nvidia/mit-bN`, known without the network."""
    depths, hidden_sizes, decoder_hidden_size = _SIZES[variant]
    return SegformerConfig(
        depths=list(depths),
        hidden_sizes=list(hidden_sizes),
        decoder_hidden_size=decoder_hidden_size,
        num_attention_heads=[1, 2, 5, 8],
        sr_ratios=[8, 4, 2, 1],
        mlp_ratios=[4, 4, 4, 4],
        patch_sizes=[7, 3, 3, 3],
        strides=[4, 2, 2, 2],
        layer_norm_eps=1e-6,
        drop_path_rate=drop_path,
        attn_implementation="sdpa",
    )


class MixTransformer(nn.Module):
    """The stages of transformers' SegformerModel under its own names; each output is the stage's normed one.

    The forward pass is written out so that features stay channels-last (a token sequence already is) and no stage
    copies its output, and so that only the four outputs are kept.

    Args:
        variant: "mit-b0" to "mit-b5".
        drop_path: probability of dropping the deepest residual branch in training; it grows linearly from 0.
        gradient_checkpointing: recompute the blocks in the backward pass instead of keeping their activations.
    """

    def __init__(self, variant: str, drop_path: float, gradient_checkpointing: bool):
        super().__init__()
        self.stages = SegformerModel(mit_config(variant, drop_path)).stages
        self.gradient_checkpointing = gradient_checkpointing
        for module in self.stages.modules():
            if isinstance(module, nn.Conv2d):  # the paper's own; transformers' 0.02 starves depthwise convolutions
                fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """B,3,H,W, H and W at least 29 -> [C1, C2, C3, C4]."""
        features = []
        for stage in self.stages:
            tokens, height, width = stage.patch_embeddings(x)
            for block in stage.blocks:
                if self.gradient_checkpointing and self.training:
                    tokens = checkpointed(block, tokens, height, width)
                else:
                    tokens = block(tokens, height, width)
            x = stage.layer_norm(tokens).unflatten(1, (height, width)).permute(0, 3, 1, 2)
            features.append(x)
        return features
