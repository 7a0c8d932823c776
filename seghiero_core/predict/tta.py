"""Test-time augmentation: the mean of the logits of an image, mirrored and at several scales."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from seghiero_core.errors import UsageError, nearest
from seghiero_core.predict.tiling import Forward

SCALES = (0.75, 1.0, 1.25)
"""Of each side, relative to the image's."""


def with_augmentation(forward: Forward, names: Sequence[str]) -> Forward:
    """`forward` averaged over what `names` asks for: "flip" (left and right), "scales" (SCALES), or both.

    Raises UsageError for another name.
    """
    for name in names:
        if name not in ("flip", "scales"):
            raise UsageError(f"--tta: there is no '{name}'.{nearest(name, ('flip', 'scales'))} Known: flip, scales.")
    if not names:
        return forward
    scales = SCALES if "scales" in names else (1.0,)

    def augmented(images: Tensor) -> Tensor:
        size = images.shape[-2:]
        total: Tensor | float = 0.0
        for scale in scales:
            scaled = images if scale == 1 else _scaled(images, scale)
            logits = forward(scaled)
            if "flip" in names:
                logits = (logits + forward(scaled.flip(-1)).flip(-1)) / 2
            total = total + F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        return total / len(scales)

    return augmented


def _scaled(images: Tensor, scale: float) -> Tensor:
    size = [max(1, round(side * scale)) for side in images.shape[-2:]]
    values = F.interpolate(images.float(), size=size, mode="bilinear", align_corners=False, antialias=True)
    return values.round().clamp(0, 255).to(torch.uint8)
