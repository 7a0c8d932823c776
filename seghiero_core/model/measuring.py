"""Predicting images of any size and counting the predictions, within the memory that there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from seghiero_core.decode import Decoded, decode
from seghiero_core.decode_modes import DEFAULT_DECODING, Decoding
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.losses.bands import upsample, upsample_in_bands
from seghiero_core.metrics.metrics import Metrics
from seghiero_core.model.tiling import DEFAULT_OVERLAP, DEFAULT_TILE, CoarseForward, Forward, Picture, tiled_logits

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


def decode_in_bands(
    logits: torch.Tensor,
    stride: int,
    size: Sequence[int],
    hierarchy: Hierarchy,
    mode: str = DEFAULT_DECODING.mode,
    *,
    scores: str = "softmax",
) -> Decoded:
    """Upsample logits and decode them band by band, so that those of the image's size are never stored.

    Args:
        logits: B,K,h,w float32 over the padded image.
        stride: How many pixels of the image a logit covers along each side.
        size: (H, W) of the image, px.
        hierarchy: The class tree.
        mode: A decoding mode.
        scores: What the logits mean, see `decode`.

    Returns:
        The predictions of the image.
    """
    shape = (len(logits), *size)
    ids = tuple(torch.empty(shape, dtype=torch.int64, device=logits.device) for _ in hierarchy.levels)
    confidence = tuple(torch.empty(shape, dtype=logits.dtype, device=logits.device) for _ in hierarchy.levels)
    for rows, band in upsample_in_bands(logits, stride, size):
        decoded = decode(band, hierarchy, mode, scores=scores)
        for whole, part in zip((*ids, *confidence), (*decoded.ids, *decoded.confidence), strict=True):
            whole[:, rows] = part
    return Decoded(ids, confidence)


def count_images(
    forward: CoarseForward,
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
        logits, stride = forward(images)
        decoded = decode_in_bands(logits, stride, images.shape[-2:], hierarchy, decoding.mode, scores=scores)
        del logits
    else:
        decoded = _decode_tiles(whole_logits(forward), images, hierarchy, decoding.mode, scores, tile)
    target = target.to(decoded.ids[0].device)
    for one in dict.fromkeys(metrics):
        chosen = [i for i, each in enumerate(metrics) if each is one]
        part = slice(None) if len(chosen) == len(metrics) else chosen  # a slice copies nothing
        ids, confidence = (tuple(level[part] for level in maps) for maps in decoded)
        one.update(Decoded(ids, confidence), target[part], confidence=decoding.confidence)
    return decoded


def whole_logits(forward: CoarseForward) -> Forward:
    """Wrap a network so that it upsamples its logits to the size of the images.

    Args:
        forward: The network.

    Returns:
        The wrapped network.
    """

    def upsampled(images: torch.Tensor) -> torch.Tensor:
        return upsample(*forward(images), *images.shape[-2:])

    return upsampled


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
