"""Small models of timm, and one with the shape of DINOv3 that tests register there."""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.layers import LayerNorm
from timm.models import register_model
from timm.models.eva import (
    Eva,
    _create_eva,
    checkpoint_filter_fn,  # noqa: F401  timm's function for weights, which is looked up in this module
)


@register_model
def tiny_dinov3(pretrained: bool = False, **kwargs: Any) -> Eva:
    """A `vit_small_patch16_dinov3` with fewer and narrower blocks."""
    shape = {
        "patch_size": 16,
        "dynamic_img_size": True,
        "embed_dim": 48,
        "depth": 4,
        "num_heads": 3,
        "qkv_bias": False,
        "init_values": 1.0e-05,
        "rope_type": "dinov3",
        "rope_temperature": 100,
        "rope_rotate_half": True,
        "use_rot_pos_emb": True,
        "use_abs_pos_emb": False,
        "num_reg_tokens": 4,
        "use_fc_norm": False,
        "norm_layer": partial(LayerNorm, eps=1e-5),
    }
    return _create_eva("tiny_dinov3", pretrained=pretrained, **{**shape, **kwargs})


def timm_section(variant: str, **options: Any) -> dict[str, Any]:
    """The config of a backbone."""
    return {"backbone": {"type": "timm", "variant": variant, **options}}
