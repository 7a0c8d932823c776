"""Key layouts of published ResNets, ConvNeXts and MiTs, as replacements that turn their keys into ours.

Our keys are timm's (for ResNet also torchvision's and OpenMMLab's), and those of transformers 5 for MiT.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

Rename = tuple[str, str | Callable[[re.Match[str]], str]]
"""A pattern and its replacement, as `re.sub` takes them."""


@dataclass(frozen=True)
class Layout:
    """A naming scheme of a backbone's tensors.

    Attributes:
        name: What reports call it.
        marker: Pattern that some key of this layout matches, and no key of the others.
        renames: Replacements that turn its keys into ours, applied in order.
        fused: Part of a key, and the parts to replace it with. Such a tensor is split along its first dimension into
            one tensor per replacement, before renaming.
    """

    name: str
    marker: str
    renames: tuple[Rename, ...]
    fused: tuple[tuple[str, tuple[str, ...]], ...] = ()


LAYOUTS = (
    Layout(
        "transformers 4 MiT",
        r"\bencoder\.block\.\d",
        (
            (r"\bencoder\.patch_embeddings\.(\d)\.", r"stages.\1.patch_embeddings."),
            (r"\bencoder\.block\.(\d)\.", r"stages.\1.blocks."),
            (r"\bencoder\.layer_norm\.(\d)\.", r"stages.\1.layer_norm."),
            (r"\.attention\.self\.query\.", ".attention.q_proj."),
            (r"\.attention\.self\.key\.", ".attention.k_proj."),
            (r"\.attention\.self\.value\.", ".attention.v_proj."),
            (r"\.attention\.self\.sr\.", ".attention.sequence_reduction.sequence_reduction."),
            (r"\.attention\.self\.layer_norm\.", ".attention.sequence_reduction.layer_norm."),
            (r"\.attention\.output\.dense\.", ".attention.o_proj."),
            (r"\.mlp\.dense([12])\.", r".mlp.fc\1."),
            (r"\.layer_norm_1\.", ".layernorm_before."),
            (r"\.layer_norm_2\.", ".layernorm_after."),
        ),
    ),
    Layout(
        "the SegFormer authors' MiT",
        r"\bpatch_embed\d\.",
        (
            (r"\bpatch_embed(\d)\.proj\.", lambda m: f"stages.{int(m[1]) - 1}.patch_embeddings.proj."),
            (r"\bpatch_embed(\d)\.norm\.", lambda m: f"stages.{int(m[1]) - 1}.patch_embeddings.layer_norm."),
            (r"\bblock(\d)\.(\d+)\.norm1\.", lambda m: f"stages.{int(m[1]) - 1}.blocks.{m[2]}.layernorm_before."),
            (r"\bblock(\d)\.(\d+)\.norm2\.", lambda m: f"stages.{int(m[1]) - 1}.blocks.{m[2]}.layernorm_after."),
            (r"\bblock(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.blocks."),
            (r"\bnorm(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.layer_norm."),
            (r"\.attn\.([qkv])\.", r".attention.\1_proj."),
            (r"\.attn\.proj\.", ".attention.o_proj."),
            (r"\.attn\.sr\.", ".attention.sequence_reduction.sequence_reduction."),
            (r"\.attn\.norm\.", ".attention.sequence_reduction.layer_norm."),
        ),
        ((".attn.kv.", (".attn.k.", ".attn.v.")),),
    ),
    Layout(
        "OpenMMLab MiT",
        r"\blayers\.\d\.0\.projection\.",
        (
            (r"\blayers\.(\d)\.0\.projection\.", r"stages.\1.patch_embeddings.proj."),
            (r"\blayers\.(\d)\.0\.norm\.", r"stages.\1.patch_embeddings.layer_norm."),
            (r"\blayers\.(\d)\.2\.", r"stages.\1.layer_norm."),
            (r"\.ffn\.layers\.0\.", ".mlp.fc1."),
            (r"\.ffn\.layers\.1\.", ".mlp.dwconv.dwconv."),
            (r"\.ffn\.layers\.4\.", ".mlp.fc2."),
            (r"\blayers\.(\d)\.1\.(\d+)\.", r"stages.\1.blocks.\2."),
            (r"\.norm1\.", ".layernorm_before."),
            (r"\.norm2\.", ".layernorm_after."),
            (r"\.attn\.attn\.([qkv])_", r".attention.\1_proj."),
            (r"\.attn\.attn\.out_proj\.", ".attention.o_proj."),
            (r"\.attn\.sr\.", ".attention.sequence_reduction.sequence_reduction."),
            (r"\.attn\.norm\.", ".attention.sequence_reduction.layer_norm."),
        ),
        ((".attn.attn.in_proj_", (".attn.attn.q_", ".attn.attn.k_", ".attn.attn.v_")),),
    ),
    Layout(
        "torchvision ConvNeXt",
        r"\bfeatures\.1\.0\.layer_scale",
        (
            (r"\bfeatures\.0\.", "stem."),
            (r"\bfeatures\.([246])\.([01])\.", lambda m: f"stages.{int(m[1]) // 2}.downsample.{m[2]}."),
            (r"\bfeatures\.([1357])\.(\d+)\.", lambda m: f"stages.{int(m[1]) // 2}.blocks.{m[2]}."),
            (r"\.block\.0\.", ".conv_dw."),
            (r"\.block\.2\.", ".norm."),
            (r"\.block\.3\.", ".mlp.fc1."),
            (r"\.block\.5\.", ".mlp.fc2."),
            (r"\.layer_scale$", ".gamma"),
        ),
    ),
    Layout(
        "the ConvNeXt authors' or OpenMMLab's",
        r"\bdownsample_layers\.\d",
        (
            (r"\bdownsample_layers\.0\.", "stem."),
            (r"\bdownsample_layers\.(\d)\.", r"stages.\1.downsample."),
            (r"\bstages\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
            (r"\.(dwconv|depthwise_conv)\.", ".conv_dw."),
            (r"\.(pwconv|pointwise_conv)([12])\.", r".mlp.fc\2."),
        ),
    ),
    Layout(
        "transformers ConvNeXt",
        r"\.layer_scale_parameter$",
        (
            (r"\bembeddings\.patch_embeddings\.", "stem.0."),
            (r"\bembeddings\.layernorm\.", "stem.1."),
            (r"\bencoder\.stages\.(\d)\.downsampling_layer\.", r"stages.\1.downsample."),
            (r"\bencoder\.stages\.(\d)\.layers\.", r"stages.\1.blocks."),
            (r"\.layer_scale_parameter$", ".gamma"),
            (r"\.dwconv\.", ".conv_dw."),
            (r"\.layernorm\.", ".norm."),
            (r"\.pwconv([12])\.", r".mlp.fc\1."),
        ),
    ),
    Layout(
        "transformers ResNet",
        r"\bembedder\.embedder\.convolution\.",
        (
            (r"\bembedder\.embedder\.convolution\.", "conv1."),
            (r"\bembedder\.embedder\.normalization\.", "bn1."),
            (r"\bencoder\.stages\.(\d)\.layers\.", lambda m: f"layer{int(m[1]) + 1}."),
            (r"\.layer\.(\d)\.convolution\.", lambda m: f".conv{int(m[1]) + 1}."),
            (r"\.layer\.(\d)\.normalization\.", lambda m: f".bn{int(m[1]) + 1}."),
            (r"\.shortcut\.convolution\.", ".downsample.0."),
            (r"\.shortcut\.normalization\.", ".downsample.1."),
        ),
    ),
)
"""All layouts that need renaming."""
