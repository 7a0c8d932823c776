"""Predicting images of any size and counting the predictions, within the memory that there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from seghiero_core.decode import Decoded, decode
from seghiero_core.decode_modes import DEFAULT_DECODING, Decoding
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.metrics.metrics import Metrics
from seghiero_core.model.tiling import DEFAULT_OVERLAP, DEFAULT_TILE, Forward, Picture, tiled_logits

_SMALLEST_TILE = 2 * DEFAULT_OVERLAP


@dataclass
class MemoryLimit:
    """How much of a batch goes through the network at once. `evaluate` lowers it when memory runs out.

    Attributes:
        images: Images computed together.
        tile: Side of the tiles that each image is computed in, px; None computes whole images.
        reported: Whether the user knows about the tiles.
    """

    images: int
    tile: int | None = None
    reported: bool = False

    def lower(self) -> bool:
        """Go to the next smaller size: half as many images, then one image in tiles, then smaller tiles.

        Returns:
            False if it was the smallest already.
        """
        if self.images > 1:
            self.images //= 2
        elif self.tile is None:
            self.tile = DEFAULT_TILE
        elif self.tile > _SMALLEST_TILE:
            self.tile //= 2
        else:
            return False
        return True


def count_images(
    forward: Forward,
    images: torch.Tensor,
    target: torch.Tensor,
    metrics: Sequence[Metrics],
    decoding: Decoding = DEFAULT_DECODING,
    *,
    scores: str = "softmax",
    tile: int | None = None,
) -> Decoded:
    """Predict images, and count the predictions.

    Args:
        forward: The network, which moves the images to its device.
        images: B,3,H,W uint8.
        target: B,H,W labels or `IGNORE_INDEX`.
        metrics: Where to count each of the B images.
        decoding: How the logits become classes.
        scores: What the logits mean, see `decode`.
        tile: Side of tiles, px, to predict a single image in; the result is then on the CPU.

    Returns:
        The predictions, without a threshold on the confidence.
    """
    hierarchy = metrics[0].hierarchy
    if tile is None:
        decoded = decode(forward(images), hierarchy, decoding.mode, scores=scores)
    else:
        decoded = _decode_tiles(forward, images, hierarchy, decoding.mode, scores, tile)
    target = target.to(decoded.ids[0].device)
    for one in dict.fromkeys(metrics):
        chosen = [i for i, each in enumerate(metrics) if each is one]
        part = slice(None) if len(chosen) == len(metrics) else chosen  # a slice copies nothing
        ids, confidence = (tuple(level[part] for level in maps) for maps in decoded)
        one.update(Decoded(ids, confidence), target[part], confidence=decoding.confidence)
    return decoded


def _decode_tiles(
    forward: Forward, images: torch.Tensor, hierarchy: Hierarchy, mode: str, scores: str, tile: int
) -> Decoded:
    """Predict one image (1,3,H,W) tile by tile; only the predictions of all tiles are kept, on the CPU."""
    pixels = images[0].permute(1, 2, 0).cpu().numpy()
    height, width = pixels.shape[:2]
    picture = Picture(height, width, lambda top, bottom, left, right: pixels[top:bottom, left:right])
    ids = tuple(torch.empty(1, height, width, dtype=torch.int64) for _ in hierarchy.levels)
    confidence = tuple(torch.empty(1, height, width) for _ in hierarchy.levels)
    for top, left, logits in tiled_logits(picture, forward, tile=tile, overlap=DEFAULT_OVERLAP):
        decoded = decode(logits[None], hierarchy, mode, scores=scores)
        rows, columns = slice(top, top + logits.shape[1]), slice(left, left + logits.shape[2])
        for whole, part in zip((*ids, *confidence), (*decoded.ids, *decoded.confidence), strict=True):
            whole[:, rows, columns] = part
    return Decoded(ids, confidence)
