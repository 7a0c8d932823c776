"""Predicting one image: `Predictor` turns a picture into `Strip`s, and joins those into a `Prediction`.

Large images are predicted strip by strip, so that neither their logits nor their masks have to fit in memory at once.
`loading.load` makes a Predictor from a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seghiero_core.decode import decode, level_scores, written_ids
from seghiero_core.decode_modes import DEFAULT_DECODING, undecided_id
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.model.tiling import DEFAULT_OVERLAP, DEFAULT_TILE, Forward, Picture, tiled_logits, to_batch
from seghiero_core.predict.picture import open_picture
from seghiero_core.predict.prediction import Prediction
from seghiero_core.predict.strip import Strip, empty_strip, paste

WHOLE_PIXELS = 1 << 22
"""If no tile size is set, images up to this many pixels (2048x2048) are predicted in one piece."""


@dataclass(frozen=True)
class Predictor:
    """A trained network with its classes; call it with an image to get masks.

    Attributes:
        hierarchy: The classes.
        forward: The network: images B,3,H,W uint8 -> logits B,C,H,W float32.
        scores: What the logits mean, one of `decode.SCORES`.
        mode: A decoding mode, one of `decode_modes.MODES`.
        confidence: The threshold in 0..1 below which predictions back off to a coarser level (see `decode`), or None.
        tile: Side of the tiles of the sliding window, px. None means that images up to WHOLE_PIXELS are predicted in
            one piece, and larger ones in tiles of DEFAULT_TILE.
        overlap: What neighboring tiles share, px.
        batch_size: Tiles, or images of one size, that go through the network together.

    Example:
        >>> from seghiero_core import load
        >>> predictor = load("my-project/runs/demo", device="cpu")
        >>> predictor.hierarchy.level_names(0)[:3]
        ('sky', 'grass', 'water')
        >>> list(predictor("street.jpg").ids)
        ['leaf', 'level1', 'level2']
    """

    hierarchy: Hierarchy
    forward: Forward
    scores: str = "softmax"
    mode: str = DEFAULT_DECODING.mode
    confidence: float | None = None
    tile: int | None = None
    overlap: int = DEFAULT_OVERLAP
    batch_size: int = 1

    def __call__(self, image: Any) -> Prediction:
        """Predict the masks of an image.

        Args:
            image: A path, a Pillow image, an array H,W,3 or H,W, or a tensor 3,H,W; values 0..255.

        Returns:
            Ids and confidence at every level.

        Raises:
            DataError: The file can't be read.
            UsageError: The argument is not an image.
        """
        picture = open_picture(image)
        strips = [strip for (strip,) in self.strips([picture])]
        ids, confidence = {}, {}
        for number, level in enumerate(self.hierarchy.levels):
            ids[level.name] = np.concatenate([strip.ids[number] for strip in strips])
            confidence[level.name] = np.concatenate([strip.confidence[number] for strip in strips])
        return Prediction(ids, confidence, self.hierarchy, picture, self.undecided)

    @property
    def undecided(self) -> int | None:
        """The id of pixels whose prediction backed off to a coarser level; None without a threshold."""
        return None if self.confidence is None else undecided_id(self.hierarchy)

    def is_tiled(self, picture: Picture) -> bool:
        """Tell whether a picture is too large to be predicted in one piece.

        Args:
            picture: The image.

        Returns:
            True if it is predicted in tiles.
        """
        if self.tile is None:
            return picture.height * picture.width > WHOLE_PIXELS
        return max(picture.height, picture.width) > self.tile

    def strips(self, pictures: Sequence[Picture], *, scores: bool = False) -> Iterator[list[Strip]]:
        """Predict pictures of one size together, or one larger picture strip by strip.

        Args:
            pictures: Images of one size; a single one if it is tiled (see `is_tiled`).
            scores: Also give the scores of all classes.

        Yields:
            One strip per picture: once with all rows, or many times from top to bottom.
        """
        if not self.is_tiled(pictures[0]):
            yield self._decode(0, self.forward(to_batch([picture.whole() for picture in pictures])), scores)
            return
        (picture,) = pictures
        tile = DEFAULT_TILE if self.tile is None else self.tile
        pieces = tiled_logits(picture, self.forward, tile=tile, overlap=self.overlap, batch_size=self.batch_size)
        for top, row in groupby(pieces, key=lambda piece: piece[0]):
            yield [self._join(top, picture.width, row, scores)]

    def _join(self, top: int, width: int, pieces: Iterator[tuple[int, int, Tensor]], scores: bool) -> Strip:
        """Decode each piece (top, left, logits C,h,w) straight into its place in the strip, to hold the strip once."""
        strip: Strip | None = None
        for _, left, logits in pieces:
            (piece,) = self._decode(top, logits[None], scores)
            if strip is None:
                strip = empty_strip(piece, width)
            paste(piece, strip, left)
        return strip

    @torch.inference_mode()
    def _decode(self, top: int, logits: Tensor, scores: bool) -> list[Strip]:
        """Decode logits B,C,h,w to one strip per image."""
        decoded = decode(logits, self.hierarchy, self.mode, self.confidence, scores=self.scores)
        undecided = self.undecided
        level_ids = decoded.ids if undecided is None else written_ids(decoded, self.hierarchy)
        largest = max(len(level.nodes) for level in self.hierarchy.levels) - 1
        dtype = np.uint8 if max(largest, undecided or 0) <= 255 else np.uint16
        all_ids = [ids.cpu().numpy().astype(dtype) for ids in level_ids]
        all_confidence = [confidence.cpu().numpy() for confidence in decoded.confidence]
        all_scores = []
        if scores:
            all_scores = [score.half().cpu().numpy() for score in level_scores(logits, self.hierarchy, self.scores)]
        return [
            Strip(
                top,
                ids=tuple(ids[i] for ids in all_ids),
                confidence=tuple(confidence[i] for confidence in all_confidence),
                scores=tuple(score[i] for score in all_scores),
            )
            for i in range(len(logits))
        ]
