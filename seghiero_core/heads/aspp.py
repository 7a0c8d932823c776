"""Registration of the DeepLabV3+ head (Chen et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from annotated_types import Ge

from seghiero_core.registry import Rate, register_head

Dilation = Annotated[int, Ge(1)]


@register_head("aspp", proj_dim=256)
def build(
    in_channels_list: Sequence[int],
    num_classes: int,
    proj_dim: int,
    *,
    output_stride: int = 32,
    embedding: bool = True,
    dilations: tuple[Dilation, Dilation, Dilation] | None = None,
    dropout: Rate = 0.1,
) -> Any:
    """DeepLabV3+: an atrous pyramid with image pooling on C4, refined with C1; reliable on any backbone.

    `dilations` default to the paper's (6, 12, 18) at stride 16, and to the same distance in image pixels at strides 8
    and 32: on a smaller map, larger dilations would reach mostly padding.
    """
    from seghiero_core.heads.networks.aspp import ASPPHead

    default_dilations = tuple(96 * i // output_stride for i in (1, 2, 3))
    return ASPPHead(in_channels_list, num_classes, proj_dim, dilations or default_dilations, dropout, embedding)
