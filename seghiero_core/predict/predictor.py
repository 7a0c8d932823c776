"""From a checkpoint or an ONNX file to masks.

from seghiero_core import load

predict = load("runs/x")
masks = predict("street.jpg").ids  # {"leaf": H,W, "level1": H,W, ...}
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from seghiero_core.decode import decode, level_scores, written_ids
from seghiero_core.decode_modes import undecided_id
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.predict.picture import Picture, open_picture
from seghiero_core.predict.tiling import Forward, tiled_logits, to_batch

WHOLE_PIXELS = 1 << 22
"""Without a tile size, images up to this many pixels (2048x2048) are done in one piece."""
TILE = 1024
OVERLAP = 128
"""Side of a tile, and what neighbours share, px."""


@dataclass(frozen=True)
class Prediction:
    """Of one image, by level name, finest level first.

    Attributes:
        ids: H,W whole numbers each, the class's position in `hierarchy.level_names(level)`; `Predictor.undecided` where
            the prediction backed off to a coarser level.
        confidence: H,W float32 each, the score in 0..1 of that class.
    """

    ids: dict[str, np.ndarray]
    confidence: dict[str, np.ndarray]


class Strip(NamedTuple):
    """Whole rows of a prediction, from `top` on: per level ids h,W, confidence h,W and, if asked, scores C,h,W."""

    top: int
    ids: tuple[np.ndarray, ...]
    confidence: tuple[np.ndarray, ...]
    scores: tuple[np.ndarray, ...] | None


@dataclass(frozen=True)
class Predictor:
    """A trained network with its classes: `predictor(image)` gives masks.

    Attributes:
        forward: images B,3,H,W uint8 -> logits B,C,H,W float32.
        scores, mode, confidence: how logits become classes, see `decode`.
        tile: side of the sliding window's tiles in px, or None: then images up to WHOLE_PIXELS are done whole and
            larger ones in tiles of TILE.
        overlap: what neighbouring tiles share, px.
        batch_size: tiles (or images of one size) that go through the network together.
    """

    hierarchy: Hierarchy
    forward: Forward
    scores: str = "softmax"
    mode: str = "leaf"
    confidence: float | None = None
    tile: int | None = None
    overlap: int = OVERLAP
    batch_size: int = 1

    def __call__(self, image: Any) -> Prediction:
        """Masks of a path, a Pillow image, an array H,W,3 or H,W, or a tensor 3,H,W; values 0..255.

        Raises DataError for a file that can't be read, UsageError for anything else that is no image.
        """
        strips = [strip for (strip,) in self.strips([open_picture(image)])]
        names = [level.name for level in self.hierarchy.levels]
        ids = (np.concatenate(parts) for parts in zip(*(strip.ids for strip in strips), strict=True))
        confidence = (np.concatenate(parts) for parts in zip(*(strip.confidence for strip in strips), strict=True))
        return Prediction(dict(zip(names, ids, strict=True)), dict(zip(names, confidence, strict=True)))

    @property
    def undecided(self) -> int | None:
        """What ids hold where a prediction backed off; None where there is no threshold to back off from."""
        return None if self.confidence is None else undecided_id(self.hierarchy)

    def is_tiled(self, picture: Picture) -> bool:
        """Whether a picture is too large to be done in one piece."""
        if self.tile is None:
            return picture.height * picture.width > WHOLE_PIXELS
        return max(picture.height, picture.width) > self.tile

    def strips(self, pictures: Sequence[Picture], *, scores: bool = False) -> Iterator[list[Strip]]:
        """The prediction of pictures of one size, as one strip each; or of one larger picture, strip by strip."""
        if not self.is_tiled(pictures[0]):
            yield self._decoded(0, self.forward(to_batch([picture.whole() for picture in pictures])), scores)
            return
        pieces = tiled_logits(
            pictures[0], self.forward, tile=self.tile or TILE, overlap=self.overlap, batch_size=self.batch_size
        )
        for top, row in groupby(pieces, key=lambda piece: piece[0]):
            yield [self._side_by_side(top, pictures[0].width, row, scores)]

    def _side_by_side(self, top: int, width: int, row: Iterator[tuple[int, int, Tensor]], scores: bool) -> Strip:
        """A strip of pieces (top, left, logits C,h,w), each decoded into its place: never two copies of the strip."""
        strip: Strip | None = None
        for _, left, logits in row:
            part = self._decoded(top, logits[None], scores)[0]
            if strip is None:
                strip = Strip(top, *(_widened(of_levels, width) for of_levels in part[1:]))
            for whole, of_levels in zip(strip[1:], part[1:], strict=True):
                for to, of_level in zip(whole or (), of_levels or (), strict=True):
                    to[..., left : left + of_level.shape[-1]] = of_level
        return strip

    @torch.inference_mode()
    def _decoded(self, top: int, logits: Tensor, scores: bool) -> list[Strip]:
        decoded = decode(logits, self.hierarchy, self.mode, self.confidence, scores=self.scores)
        undecided, largest = self.undecided, max(len(level.nodes) for level in self.hierarchy.levels) - 1
        dtype = np.uint8 if max(largest, undecided or 0) <= 255 else np.uint16
        written = decoded.ids if undecided is None else written_ids(decoded, self.hierarchy)
        ids = [of_level.cpu().numpy().astype(dtype) for of_level in written]
        confidence = [of_level.cpu().numpy() for of_level in decoded.confidence]
        by_level = [s.half().cpu().numpy() for s in level_scores(logits, self.hierarchy, self.scores)] if scores else []
        return [
            Strip(top, _nth(ids, i), _nth(confidence, i), _nth(by_level, i) if scores else None)
            for i in range(len(logits))
        ]


def _nth(by_level: list[np.ndarray], i: int) -> tuple[np.ndarray, ...]:
    return tuple(of_level[i] for of_level in by_level)


def _widened(of_levels: tuple[np.ndarray, ...] | None, width: int) -> tuple[np.ndarray, ...] | None:
    return of_levels and tuple(np.empty((*part.shape[:-1], width), part.dtype) for part in of_levels)
