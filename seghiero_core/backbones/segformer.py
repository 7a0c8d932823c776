"""Registration of MiT, the encoder of SegFormer (Xie et al. 2021), built with transformers."""

from __future__ import annotations

from typing import Any

from seghiero_core.registry import Rate, register_backbone

_WIDE = (64, 128, 320, 512)
_VARIANTS = {"mit-b0": (32, 64, 160, 256), **{f"mit-b{i}": _WIDE for i in range(1, 6)}}


@register_backbone(
    "segformer",
    default="mit-b0",
    variants=_VARIANTS,
    source="transformers",
    weights={variant: (f"nvidia/{variant}",) for variant in _VARIANTS},
)
def build(variant: str, *, drop_path: Rate = 0.1, gradient_checkpointing: bool = False) -> Any:
    """MiT, the transformer encoder of SegFormer; works best with a SegFormer head."""
    from seghiero_core.backbones.networks.mit import MixTransformer

    return MixTransformer(variant, drop_path, gradient_checkpointing)
