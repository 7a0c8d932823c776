"""Registration of a linear classifier of one feature map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from annotated_types import Ge, Le

from seghiero_core.registry import register_head

Stage = Annotated[int, Ge(1), Le(4)]


@register_head("linear", proj_dim=64)
def build(
    in_channels_list: Sequence[int],
    num_classes: int,
    proj_dim: int,
    *,
    embedding: bool = True,
    stage: Stage = 4,
) -> Any:
    """A linear classifier of one feature map, to measure what a frozen backbone has learned."""
    from seghiero_core.heads.networks.linear import LinearHead

    return LinearHead(in_channels_list, num_classes, proj_dim, stage, embedding)
