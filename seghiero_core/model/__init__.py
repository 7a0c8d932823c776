"""Networks from a config: the factories and the assembled model."""

from seghiero_core.model.factories import (
    build_model,
    build_trained_model,
    create_backbone,
    create_head,
    get_backbone_channels,
    get_backbone_strides,
    get_statistics,
)

__all__ = [
    "build_model",
    "build_trained_model",
    "create_backbone",
    "create_head",
    "get_backbone_channels",
    "get_backbone_strides",
    "get_statistics",
]
