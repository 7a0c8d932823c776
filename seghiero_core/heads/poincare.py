"""Registration of the DeepLabV3+ head with a hyperbolic classifier (Atigh et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from annotated_types import Gt, Le

from seghiero_core.heads.aspp import Dilation
from seghiero_core.heads.aspp import build as build_aspp
from seghiero_core.registry import Rate, register_head

Curvature = Annotated[float, Gt(0), Le(10)]  # above, rounding in float32 moves the boundaries


@register_head("poincare", proj_dim=256)
def build(
    in_channels_list: Sequence[int],
    num_classes: int,
    proj_dim: int,
    *,
    output_stride: int = 32,
    embedding: bool = True,
    dilations: tuple[Dilation, Dilation, Dilation] | None = None,
    dropout: Rate = 0.1,
    curvature: Curvature = 1.0,
) -> Any:
    """The decoder of aspp with a classifier in hyperbolic space, for experiments."""
    from seghiero_core.heads.networks.poincare import PoincareClassifier

    head = build_aspp(
        in_channels_list,
        num_classes,
        proj_dim,
        output_stride=output_stride,
        embedding=embedding,
        dilations=dilations,
        dropout=dropout,
    )
    head.classifier = PoincareClassifier(head.classifier, curvature)
    return head
