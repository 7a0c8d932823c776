"""Sliding window: tiles that cover an image of any size, and their logits, blended where tiles overlap."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

ALIGNMENT = 32
"""Tiles start at multiples of this (px). It is the largest stride, so a tile is sampled just as the whole image is."""

DEFAULT_TILE = 1024
"""Side of a tile, px."""
DEFAULT_OVERLAP = 128
"""What neighboring tiles share, px."""

Forward = Callable[[Tensor], Tensor]
"""A network: images B,C,H,W uint8 or float32 -> logits B,K,H,W float32."""
CoarseForward = Callable[[Tensor], tuple[Tensor, int]]
"""A network without the last upsampling: the same images -> logits B,K,h,w float32 over the padded image, and how many
pixels each covers along a side. Whole logits have 1."""


@dataclass(frozen=True)
class Picture:
    """An upright image of C channels: RGB, or the bands that a network was trained on.

    Attributes:
        height, width: The size in px.
        crop: `crop(top, bottom, left, right)` in px reads h,w,C uint8, or float32 where the network takes that.
        valid: `valid(top, bottom, left, right)` tells which pixels hold data: h,w bool. None: all do.
        show: Makes a picture to look at, h,w,3 uint8, of a crop. None: the crops are RGB.
        raster: For an image that is predicted to rasters, the file (see `predict.raster`); else None.
    """

    height: int
    width: int
    crop: Callable[[int, int, int, int], np.ndarray]
    valid: Callable[[int, int, int, int], np.ndarray] | None = None
    show: Callable[[np.ndarray], np.ndarray] | None = None
    raster: Any = None

    def whole(self) -> np.ndarray:
        """Read the whole image.

        Returns:
            H,W,C uint8 or float32.
        """
        return self.crop(0, self.height, 0, self.width)

    def shown(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """Read a crop to look at.

        Args:
            top, bottom, left, right: The crop, px.

        Returns:
            h,w,3 uint8 RGB.
        """
        crop = self.crop(top, bottom, left, right)
        return crop if self.show is None else self.show(crop)


def align_up(length: int) -> int:
    """Round a length up to a multiple of ALIGNMENT.

    Args:
        length: In px.

    Returns:
        The rounded length in px.
    """
    return _divide_up(length, ALIGNMENT) * ALIGNMENT


def tile_spans(length: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """Divide one side of an image into as few tiles as possible, of nearly equal size.

    Neighbors share exactly `overlap` px, and no pixel lies in more than two tiles.

    Args:
        length: The side of the image, px.
        tile: The largest side of a tile, px, a multiple of ALIGNMENT.
        overlap: What neighbors share, px: a multiple of ALIGNMENT, at most half of `tile`.

    Returns:
        (start, end) of each tile in px. All but the last end, which is the image's, are multiples of ALIGNMENT.
    """
    if length <= tile:
        return [(0, length)]
    count = _divide_up(length - overlap, tile - overlap)
    size = align_up(_divide_up(length + (count - 1) * overlap, count))
    return [(start, min(start + size, length)) for start in range(0, length - overlap, size - overlap)]


def tiled_logits(
    picture: Picture, forward: Forward, *, tile: int, overlap: int, batch_size: int = 1, start: int = 0
) -> Iterator[tuple[int, int, Tensor]]:
    """Compute the logits of a picture tile by tile, blended where tiles overlap.

    The weight of a tile falls linearly to 0 over the overlap, and the weights of neighbors add up to 1. Only what has
    to wait for a neighbor is kept: the bottom `overlap` rows of a row of tiles, and the right `overlap` columns of a
    tile.

    Args:
        picture: The image.
        forward: The network.
        tile, overlap: See `tile_spans`.
        batch_size: Tiles of one size that go through the network together.
        start: Where to go on, px: the top of a rectangle. Those above are left out, and nothing else changes.

    Yields:
        (top, left, logits C,h,w) of finished rectangles in reading order, which cover each pixel once.
    """
    columns = tile_spans(picture.width, tile, overlap)
    rows = tile_spans(picture.height, tile, overlap)
    if start >= picture.height:
        return
    carried: Tensor | None = None  # C,overlap,W: what a row of tiles adds to the next one; one buffer for all of them
    for top, bottom in rows:
        if bottom < picture.height and bottom - overlap < start:
            continue
        from_above = carried is not None
        from_left: Tensor | None = None  # C,h,overlap
        row_weights = _weights(bottom - top, overlap, first=top == 0, last=bottom == picture.height)
        for (left, right), logits in _row_of_tiles(picture, forward, top, bottom, columns, batch_size):
            column_weights = _weights(right - left, overlap, first=left == 0, last=right == picture.width)
            logits = logits * (row_weights[:, None] * column_weights).to(logits)
            if from_left is not None:
                logits[..., :overlap] += from_left
            if right < picture.width:
                from_left = logits[..., -overlap:].clone()
                logits = logits[..., :-overlap]
            columns_here = slice(left, left + logits.shape[2])
            if from_above:
                logits[:, :overlap] += carried[:, :, columns_here].to(logits)
            if bottom < picture.height:
                if carried is None:
                    carried = torch.empty(len(logits), overlap, picture.width)
                carried[:, :, columns_here] = logits[:, -overlap:]
                logits = logits[:, :-overlap]
            if top >= start:  # the row before only fills `carried`
                yield top, left, logits


def to_batch(images: list[np.ndarray]) -> Tensor:
    """Stack images to a batch.

    Args:
        images: H,W,C uint8 or float32 each, all of one size.

    Returns:
        B,C,H,W of the same type.
    """
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def _row_of_tiles(
    picture: Picture, forward: Forward, top: int, bottom: int, columns: list[tuple[int, int]], batch_size: int
) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """The span (left, right) and the logits C,h,w of each tile of a row; tiles of one width are batched."""
    batch: list[tuple[int, int]] = []
    for i, (left, right) in enumerate(columns):
        batch.append((left, right))
        is_last = i + 1 == len(columns)
        if len(batch) == batch_size or is_last or columns[i + 1][1] - columns[i + 1][0] != right - left:
            crops = [picture.crop(top, bottom, *span) for span in batch]
            yield from zip(batch, forward(to_batch(crops)), strict=True)
            batch = []


def _weights(length: int, overlap: int, *, first: bool, last: bool) -> Tensor:
    """The weights of a tile along one side."""
    weights = torch.ones(length)
    ramp = (torch.arange(overlap) + 0.5) / overlap
    if not first:
        weights[:overlap] = ramp
    if not last:
        weights[-overlap:] = 1 - ramp
    return weights


def _divide_up(value: int, by: int) -> int:
    return -(-value // by)
