"""Registration of ResNet (He et al. 2016), built with timm."""

from __future__ import annotations

from typing import Any, Literal

from seghiero_core.registry import Rate, register_backbone

# The first tag is the default. Recipe A1 of "ResNet strikes back" (Wightman et al. 2021) is the strongest ImageNet-1k
# recipe that timm publishes for all five depths under a free license. `tv2` is close, but 18 and 34 have none; `fb_*`
# is non-commercial.
_A = ("a1_in1k", "a2_in1k", "a3_in1k")
_FB = ("fb_ssl_yfcc100m_ft_in1k", "fb_swsl_ig1b_ft_in1k")
_TAGS = {
    18: (*_A, "gluon_in1k", "tv_in1k", *_FB),
    34: (*_A, "bt_in1k", "gluon_in1k", "ra4_e3600_r224_in1k", "tv_in1k"),
    50: (*_A, "a1h_in1k", "am_in1k", "b1k_in1k", "b2k_in1k", "bamboo", "bt_in1k", "c1_in1k", "c2_in1k", "d_in1k")
    + ("gluon_in1k", "ra_in1k", "ram_in1k", "tv2_in1k", "tv_in1k", *_FB),
    101: (*_A, "a1h_in1k", "gluon_in1k", "tv2_in1k", "tv_in1k"),
    152: (*_A, "a1h_in1k", "gluon_in1k", "tv2_in1k", "tv_in1k"),
}
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@register_backbone(
    "resnet",
    selector="depth",
    default=101,
    variants={
        18: (64, 128, 256, 512),
        34: (64, 128, 256, 512),
        50: (256, 512, 1024, 2048),
        101: (256, 512, 1024, 2048),
        152: (256, 512, 1024, 2048),
    },
    source="timm",
    weights={depth: tuple(f"resnet{depth}.{tag}" for tag in tags) for depth, tags in _TAGS.items()},
    tag_statistics={"resnet34.ra4_e3600_r224_in1k": _HALF},
)
def build(
    variant: str,
    *,
    output_stride: Literal[8, 16, 32] = 32,
    drop_path: Rate = 0.0,
    gradient_checkpointing: bool = False,
) -> Any:
    """ResNet, a well-tested convolutional network. An `output_stride` of 8 or 16 dilates the last stages."""
    from seghiero_core.backbones.networks.resnet import ResNet

    return ResNet(f"resnet{variant}", output_stride, drop_path, gradient_checkpointing)
