"""Make the feature maps of any network into C1 to C4: the simple feature pyramid, and missing levels of a pyramid."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
from timm.layers import LayerNorm2d
from torch import nn

from seghiero_core.backbones.networks.timm_facts import PyramidLevel


class PyramidNeck(nn.Module):
    """The levels C1 to C4 from the feature maps of a network, as planned by `plan_levels`.

    Maps are enlarged by transposed convolutions of size and stride 2, each but the last followed by a LayerNorm and a
    GELU, and reduced by convolutions of size 3 and stride 2. A level that is a map of the network has no parameters.
    For a plain network each level ends, as in ViTDet, with a convolution of size 1 and one of size 3, each followed by
    a LayerNorm.

    Reference: Li et al. 2022, "Exploring Plain Vision Transformer Backbones for Object Detection", section 3.

    Args:
        levels: How each level is made.
    """

    def __init__(self, levels: Sequence[PyramidLevel]):
        super().__init__()
        self.sources = [level.source for level in levels]
        self.levels = nn.ModuleList(_level(level) for level in levels)

    def forward(self, maps: Sequence[torch.Tensor], unread: Collection[int] = ()) -> list[torch.Tensor | None]:
        """Make the levels.

        Args:
            maps: The feature maps, each B,c,h,w.
            unread: Positions of maps that nothing depends on.

        Returns:
            [C1, C2, C3, C4], each B,c,h,w; None for what would be made of an unread map.
        """
        made: list[torch.Tensor | None] = []
        for source, level in zip(self.sources, self.levels, strict=True):
            x = made[-1] if source < 0 else None if source in unread else maps[source]
            made.append(None if x is None else level(x))
        return made


def _level(level: PyramidLevel) -> nn.Module:
    layers: list[nn.Module] = []
    width, steps = level.width, round(math.log2(level.scale))
    for step in range(steps):
        if step:
            layers += [LayerNorm2d(width), nn.GELU()]
        layers.append(nn.ConvTranspose2d(width, max(width // 2, 1), 2, 2))
        width = max(width // 2, 1)
    for _ in range(-steps):
        layers.append(nn.Conv2d(width, width, 3, 2, 1))
    if level.projected:
        channels = level.channels
        layers += [nn.Conv2d(width, channels, 1, bias=False), LayerNorm2d(channels)]
        layers += [nn.Conv2d(channels, channels, 3, padding=1, bias=False), LayerNorm2d(channels)]
    return nn.Sequential(*layers)
