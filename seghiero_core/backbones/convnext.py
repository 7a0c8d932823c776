"""Registration of ConvNeXt (Liu et al. 2022), built with timm."""

from __future__ import annotations

from typing import Any, Literal

from seghiero_core.registry import Rate, register_backbone

# The first tag is the default. The paper's own segmentation models start from ImageNet-22k weights without fine-tuning
# on ImageNet-1k, and timm has them for all five sizes under a free license. DINOv3 weights are stronger on dense tasks,
# but their license is restrictive and xlarge has none.
_FB = ("fb_in22k", "fb_in22k_ft_in1k", "fb_in22k_ft_in1k_384")
_IN12K = ("in12k", "in12k_ft_in1k", "in12k_ft_in1k_384")
_CLIP = (
    *("clip_laion2b", "clip_laion2b_augreg", "clip_laion2b_augreg_ft_in12k", "clip_laion2b_augreg_ft_in12k_in1k"),
    *("clip_laion2b_augreg_ft_in12k_in1k_384", "clip_laion2b_augreg_ft_in1k", "clip_laiona", "clip_laiona_320"),
    *("clip_laiona_augreg_320", "clip_laiona_augreg_ft_in1k_384"),
)
_TAGS = {
    "tiny": (*_FB, "fb_in1k", *_IN12K, "dinov3_lvd1689m", "eupe_lvd1689m"),
    "small": (*_FB, "fb_in1k", *_IN12K, "dinov3_lvd1689m", "eupe_lvd1689m"),
    "base": (*_FB, "fb_in1k", *_CLIP, "dinov3_lvd1689m", "eupe_lvd1689m"),
    "large": (*_FB, "fb_in1k", "dinov3_lvd1689m"),
    "xlarge": _FB,
}
_CLIP_STATISTICS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@register_backbone(
    "convnext",
    default="tiny",
    variants={
        "tiny": (96, 192, 384, 768),
        "small": (96, 192, 384, 768),
        "base": (128, 256, 512, 1024),
        "large": (192, 384, 768, 1536),
        "xlarge": (256, 512, 1024, 2048),
    },
    source="timm",
    weights={size: tuple(f"convnext_{size}.{tag}" for tag in tags) for size, tags in _TAGS.items()},
    tag_statistics={f"convnext_base.{tag}": _CLIP_STATISTICS for tag in _CLIP},
)
def build(
    variant: str,
    *,
    output_stride: Literal[8, 16, 32] = 32,
    drop_path: Rate = 0.1,
    gradient_checkpointing: bool = False,
) -> Any:
    """ConvNeXt, a modern convolutional network. An `output_stride` of 8 or 16 dilates the last stages."""
    from seghiero_core.backbones.networks.convnext import ConvNeXt

    return ConvNeXt(f"convnext_{variant}", output_stride, drop_path, gradient_checkpointing)
