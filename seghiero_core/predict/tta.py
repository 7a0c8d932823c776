"""Test-time augmentation: averaging the logits of an image with those of its mirror image and of other scales."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from seghiero_core.data.transforms import resize_with_gaps
from seghiero_core.errors import UsageError, nearest
from seghiero_core.model.tiling import Forward

AUGMENTATIONS = ("flip", "scales")
SCALES = (0.75, 1.0, 1.25)
"""Lengths of the sides, relative to the image's."""


def with_augmentation(forward: Forward, names: Sequence[str]) -> Forward:
    """Wrap a network so that it averages its logits over augmented images.

    Args:
        forward: The network.
        names: Any of AUGMENTATIONS: "flip" adds the image mirrored left to right, "scales" averages over SCALES.

    Returns:
        The wrapped network; `forward` itself if `names` is empty.

    Raises:
        UsageError: A name is unknown.
    """
    if isinstance(names, str):
        raise UsageError(f"tta: expected a sequence of names, found '{names}'; write ('{names}',).")
    for name in names:
        if name not in AUGMENTATIONS:
            known = ", ".join(AUGMENTATIONS)
            raise UsageError(f"--tta: unknown augmentation '{name}'.{nearest(name, AUGMENTATIONS)} Known: {known}.")
    if not names:
        return forward
    scales = SCALES if "scales" in names else (1.0,)

    def augmented(images: Tensor) -> Tensor:
        size = images.shape[-2:]
        total: Tensor | float = 0.0
        for scale in scales:
            scaled = images if scale == 1 else _scale(images, scale)
            logits = forward(scaled)
            if "flip" in names:
                logits = (logits + forward(scaled.flip(-1)).flip(-1)) / 2
            total = total + F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        return total / len(scales)

    return augmented


def _scale(images: Tensor, scale: float) -> Tensor:
    size = [max(1, round(side * scale)) for side in images.shape[-2:]]
    if images.is_floating_point():
        return resize_with_gaps(images, size)
    values = F.interpolate(images.float(), size=size, mode="bilinear", align_corners=False, antialias=True)
    return values.round().clamp(0, 255).to(torch.uint8)
