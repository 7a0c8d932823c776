"""Registration of the mask-query head (Cheng et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from annotated_types import Ge

from seghiero_core.errors import UsageError
from seghiero_core.registry import register_head

Count = Annotated[int, Ge(1)]
Weight = Annotated[float, Ge(0)]


@register_head("mask_query", proj_dim=128)
def build(
    in_channels_list: Sequence[int],
    num_classes: int,
    proj_dim: int,
    *,
    embedding: bool = True,
    queries: Count = 50,
    layers: Count = 3,
    class_weight: Weight = 2.0,
    mask_weight: Weight = 5.0,
    dice_weight: Weight = 5.0,
    no_object_weight: Weight = 0.1,
) -> Any:
    """Queries that each predict a class and a mask, as in Mask2Former, with a loss of its own that matches them."""
    from seghiero_core.heads.networks.mask_query import MaskQueryHead

    if proj_dim % 4:
        raise UsageError(f"head.proj_dim: mask_query needs a multiple of 4, found {proj_dim}.")
    weights = {"class": class_weight, "mask": mask_weight, "dice": dice_weight}
    return MaskQueryHead(in_channels_list, num_classes, proj_dim, queries, layers, embedding, weights, no_object_weight)
