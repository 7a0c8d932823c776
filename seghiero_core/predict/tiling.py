"""Sliding window: an image of any size, in tiles whose overlaps are blended, finished piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from seghiero_core.predict.picture import Picture

ALIGNMENT = 32
"""Tiles start at multiples of it (px), the largest stride, so that a tile samples the image as the whole does."""

Forward = Callable[[Tensor], Tensor]
"""Images B,3,H,W uint8 -> logits B,C,H,W float32."""


def tile_spans(length: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """(start, end) of the tiles along one side of `length` px: as few as there may be, and nearly alike.

    Neighbours share exactly `overlap` px, no pixel lies in three. `tile` and `overlap` are multiples of ALIGNMENT with
    2 * overlap <= tile. Only the last one's end need not be aligned: it is the image's.
    """
    if length <= tile:
        return [(0, length)]
    count = -(-(length - overlap) // (tile - overlap))
    even = -(-(length + (count - 1) * overlap) // count)
    size = -(-even // ALIGNMENT) * ALIGNMENT
    return [(start, min(start + size, length)) for start in range(0, length - overlap, size - overlap)]


def tiled_logits(
    picture: Picture, forward: Forward, *, tile: int, overlap: int, batch_size: int = 1
) -> Iterator[tuple[int, int, Tensor]]:
    """Logits of the whole picture in finished rectangles: (top, left, C,h,w), in reading order, each pixel once.

    A tile's weight falls linearly to 0 over the overlap, and the weights of neighbours add up to 1. What has to wait
    for a neighbour is kept: the lower `overlap` rows of one row of tiles, and the right `overlap` columns of one tile.
    """
    columns = tile_spans(picture.width, tile, overlap)
    rows = tile_spans(picture.height, tile, overlap)
    below: Tensor | None = None
    for top, bottom in rows:
        above, below = below, None
        beside: Tensor | None = None
        down = _weights(bottom - top, overlap, first=top == 0, last=bottom == picture.height)
        for (left, right), logits in _row_of_tiles(picture, forward, top, bottom, columns, batch_size):
            across = _weights(right - left, overlap, first=left == 0, last=right == picture.width)
            logits = logits * (down[:, None] * across).to(logits)
            if beside is not None:
                logits[..., :overlap] += beside
            if right < picture.width:
                beside = logits[..., -overlap:].clone()
                logits = logits[..., :-overlap]
            if above is not None:
                logits[:, :overlap] += above[:, :, left : left + logits.shape[2]].to(logits)
            if bottom < picture.height:
                if below is None:
                    below = torch.empty(len(logits), overlap, picture.width)
                below[:, :, left : left + logits.shape[2]] = logits[:, -overlap:]
                logits = logits[:, :-overlap]
            yield top, left, logits


def _row_of_tiles(
    picture: Picture, forward: Forward, top: int, bottom: int, columns: list[tuple[int, int]], batch_size: int
) -> Iterator[tuple[tuple[int, int], Tensor]]:
    waiting: list[tuple[int, int]] = []
    for i, span in enumerate(columns):
        waiting.append(span)
        following = columns[i + 1] if i + 1 < len(columns) else (0, 0)
        if len(waiting) == batch_size or following[1] - following[0] != span[1] - span[0]:
            crops = [picture.crop(top, bottom, *there) for there in waiting]
            yield from zip(waiting, forward(to_batch(crops)), strict=True)
            waiting = []


def to_batch(images: list[np.ndarray]) -> Tensor:
    """Arrays H,W,3 uint8 of one size to a tensor B,3,H,W."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def _weights(length: int, overlap: int, *, first: bool, last: bool) -> Tensor:
    weights = torch.ones(length)
    ramp = (torch.arange(overlap) + 0.5) / overlap
    if not first:
        weights[:overlap] = ramp
    if not last:
        weights[-overlap:] = 1 - ramp
    return weights
