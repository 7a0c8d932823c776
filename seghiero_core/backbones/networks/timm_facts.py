"""What is known about a model of timm as a backbone, and how its feature maps become C1 to C4."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

TARGETS = (4, 8, 16, 32)
"""Strides of C1 to C4, in px."""

PLAIN_WIDTH = 256
"""Channels of every map of the simple feature pyramid, as in ViTDet."""


@dataclass(frozen=True)
class TimmFacts:
    """How a model of timm is run as a backbone.

    Attributes:
        variant: Its name in timm, without a tag.
        refused: Why it can't be a backbone; empty if it can.
        parameters: Number of its parameters, without the classifier and what only the classifier needs.
        arguments: Arguments of its builder that let it take any size.
        unit: The sides of its input are padded to a multiple of this many px.
        inner: What `unit` px are resized to, in px.
        windows: Whether it takes only images of `inner` px: an image is then cut into windows of `unit` px.
        indices: The indices of its feature maps that are used, finest first.
        widths: Channels of these maps.
        strides: Their strides in px of the input: powers of 2.
        own_strides: The strides that timm gives for them, in px of the network's input.
        exact: Whether the maps have exactly these strides; others are resized.
        plain: Whether all its maps have one stride, as those of a ViT.
        unused: Parameters that these maps don't depend on.
    """

    variant: str
    refused: str = ""
    parameters: int = 0
    arguments: dict[str, bool] | None = None
    unit: int = 32
    inner: int = 32
    windows: bool = False
    indices: tuple[int, ...] = ()
    widths: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    own_strides: tuple[float, ...] = ()
    exact: bool = True
    plain: bool = False
    unused: tuple[str, ...] = ()

    @property
    def channels(self) -> tuple[int, ...]:
        """The channels of C1 to C4."""
        return tuple(level.channels for level in self.levels)

    @property
    def levels(self) -> tuple[PyramidLevel, ...]:
        """How C1 to C4 are made."""
        return plan_levels(self.strides, self.widths, plain=self.plain)


@dataclass(frozen=True)
class PyramidLevel:
    """How one of C1 to C4 is made from the feature maps of a network.

    Attributes:
        source: The number of the feature map, from 0; -1 for the previous level.
        width: Channels of the source.
        scale: Size of the level relative to its source: a power of 2.
        channels: Channels of the level.
        projected: Whether the level is projected to `channels`, as in the simple feature pyramid.
    """

    source: int
    width: int
    scale: float
    channels: int
    projected: bool = False


def plan_levels(strides: Sequence[int], widths: Sequence[int], *, plain: bool) -> tuple[PyramidLevel, ...]:
    """Plan the levels C1 to C4 from the strides and channels of a network's feature maps.

    Of a pyramid, a level is the last map of its stride, as it is. A missing level is made from the previous level by a
    strided convolution; if all maps are coarser, from the finest one by transposed convolutions, each of which halves
    the channels. Of a plain network, the four levels are made from four maps, in this order, and have 256 channels.

    Args:
        strides: The stride of each map in px, a power of 2; of a plain network four equal ones.
        widths: The channels of each map.
        plain: Whether all maps have one stride.

    Returns:
        Four levels.

    Example:
        >>> [level.channels for level in plan_levels((16, 32), (128, 256), plain=False)]
        [32, 64, 128, 256]
    """
    if plain:
        return tuple(
            PyramidLevel(source, width, stride / target, PLAIN_WIDTH, projected=True)
            for source, (width, stride, target) in enumerate(zip(widths, strides, TARGETS, strict=True))
        )
    levels: list[PyramidLevel] = []
    last = {stride: number for number, stride in enumerate(strides)}
    for target in TARGETS:
        if target in last:
            width = widths[last[target]]
            levels.append(PyramidLevel(last[target], width, 1, width))
        elif levels and min(strides) < target:
            width = levels[-1].channels
            levels.append(PyramidLevel(-1, width, 0.5, width))
        else:
            finest = last[min(strides)]
            scale = strides[finest] // target
            levels.append(PyramidLevel(finest, widths[finest], scale, max(widths[finest] // scale, 1)))
    return tuple(levels)
