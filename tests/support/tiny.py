"""A network of a few thousand parameters, registered as a user's plugin would be, and checkpoints without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from seghiero_core.checkpoint import save_checkpoint
from seghiero_core.config.loading import load_config
from seghiero_core.config.schema import Config
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.losses.combine import build_loss
from seghiero_core.model.factories import build_model
from seghiero_core.registry import register_backbone
from seghiero_core.run_files import start_list

RADIUS = 160
"""More than how far (px) a pixel's logits can see with the tiny backbone and the extremely_fast_segformer head."""
TINY = ["backbone={type: tiny}", "head={type: extremely_fast_segformer, proj_dim: 16}"]


class Tiny(nn.Module):
    """Strided convolutions and nothing global, so that what a pixel sees is known."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(3, 8, 7, stride=4, padding=3), nn.BatchNorm2d(8), nn.ReLU()),
                nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU()),
                nn.Sequential(nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.ReLU()),
                nn.Sequential(nn.Conv2d(12, 16, 3, stride=2, padding=1), nn.ReLU()),
            ]
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


@register_backbone("tiny", channels=(8, 8, 12, 16))
def build(variant: str) -> nn.Module:
    """A backbone for tests."""
    return Tiny()


def save_untrained(cfg: Path, overrides: list[str], *, seed: int = 1, **built_with: Any) -> Config:
    """Save the random network of a config as a run; `built_with` are further keywords for `build_model`.

    The classifier has standard normal weights: logits are of a trained network's size, classes differ over an image.
    """
    config = load_config(cfg, overrides)
    hierarchy = Hierarchy.from_config(config.classes)
    loss = build_loss({**config.loss, "class_weights": None}, hierarchy)
    torch.manual_seed(seed)
    offline = {
        "backbone": {**config.backbone.model_dump(), "pretrained": False},
        "head": config.head.model_dump(),
        "dataset": config.dataset,
    }
    model = build_model(offline, loss.num_channels, embedding=loss.uses_embedding, **built_with)
    with torch.no_grad():
        model.head.classifier.weight.normal_()
        model.head.classifier.bias.normal_()
    save_checkpoint(
        config.run_dir,
        1,
        config=config,
        metrics={},
        model=model.state_dict(),
        training={},
        progress={},
        best=True,
    )
    start_list(config.run_dir, [])
    return config
