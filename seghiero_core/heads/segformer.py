"""Registration of the SegFormer head (Xie et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from seghiero_core.registry import Rate, register_head


@register_head("segformer", proj_dim=256)
def build(
    in_channels_list: Sequence[int],
    num_classes: int,
    proj_dim: int,
    *,
    embedding: bool = True,
    dropout: Rate = 0.1,
) -> Any:
    """The full MLP decoder of SegFormer: the most accurate of its family, and the slowest."""
    from seghiero_core.heads.networks.segformer import SegFormerHead

    return SegFormerHead(in_channels_list, num_classes, proj_dim, dropout, embedding)
