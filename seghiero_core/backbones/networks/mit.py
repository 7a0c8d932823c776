"""MiT-B0 to MiT-B5 from transformers, returning all four stages."""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers.models.segformer.configuration_segformer import SegformerConfig
from transformers.models.segformer.modeling_segformer import SegformerLayer, SegformerModel

from seghiero_core.backbones.networks.checkpointing import checkpointed

_WIDE = (64, 128, 320, 512)
# Blocks per stage, channels per stage, and the width of the decoder that was published with the encoder.
_SIZES = {
    "mit-b0": ((2, 2, 2, 2), (32, 64, 160, 256), 256),
    "mit-b1": ((2, 2, 2, 2), _WIDE, 256),
    "mit-b2": ((3, 4, 6, 3), _WIDE, 768),
    "mit-b3": ((3, 4, 18, 3), _WIDE, 768),
    "mit-b4": ((3, 8, 27, 3), _WIDE, 768),
    "mit-b5": ((3, 6, 40, 3), _WIDE, 768),
}


def mit_config(variant: str, drop_path: float = 0.1) -> SegformerConfig:
    """Return the transformers config of a MiT variant without downloading it.

    Args:
        variant: "mit-b0" to "mit-b5".
        drop_path: Probability of dropping the deepest residual branch in training.

    Returns:
        The config that `nvidia/mit-bN` has on the hub, with `drop_path` set.
    """
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
    """Stages of transformers' SegformerModel, with its parameter names so that published weights load unchanged.

    Each output is the stage's output after its LayerNorm. The forward pass is written out here so that features keep
    the channels-last memory layout of the token sequence, no stage copies its output, and only the four outputs stay in
    memory.

    Reference: Xie et al. 2021, "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers",
    section 3.1.

    Args:
        variant: "mit-b0" to "mit-b5".
        drop_path: Probability of dropping the deepest residual branch in training; it grows linearly from 0.
        gradient_checkpointing: Whether to recompute the blocks in the backward pass to save memory.
    """

    def __init__(self, variant: str, drop_path: float, gradient_checkpointing: bool):
        super().__init__()
        self.stages = SegformerModel(mit_config(variant, drop_path)).stages
        self.gradient_checkpointing = gradient_checkpointing
        for module in self.stages.modules():
            if isinstance(module, nn.Conv2d):  # as in the paper; transformers' 0.02 is too small for depthwise ones
                fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Compute the features of a batch of images.

        Args:
            x: B,3,H,W, normalized; H and W at least 29 px.

        Returns:
            [C1, C2, C3, C4], each B,c,h,w with the channels of its stage and at stride 4, 8, 16, 32.
        """
        features = []
        for stage in self.stages:
            tokens, height, width = stage.patch_embeddings(x)
            for block in stage.blocks:
                if self.gradient_checkpointing:
                    tokens = checkpointed(block, tokens, height, width)
                else:
                    tokens = _run_block(block, tokens, height, width)
            x = stage.layer_norm(tokens).unflatten(1, (height, width)).permute(0, 3, 1, 2)
            features.append(x)
        return features


def _run_block(block: SegformerLayer, tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Run a block, whose widest activations are computed again in the backward pass: they take the most memory."""
    attended, _ = block.attention(block.layernorm_before(tokens), height, width)
    tokens = block.drop_path(attended) + tokens
    hidden = block.mlp.fc1(block.layernorm_after(tokens))

    def reduce(hidden: torch.Tensor) -> torch.Tensor:
        return block.mlp.fc2(block.mlp.activation_fn(block.mlp.dwconv(hidden, height, width)))

    return block.drop_path(checkpointed(block, hidden, part=reduce)) + tokens
