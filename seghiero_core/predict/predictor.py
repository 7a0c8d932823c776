"""Predicting one image: `Predictor` turns a picture into `Piece`s, and joins those into a `Prediction`.

Large images are predicted piece by piece, so that neither their logits nor their masks have to fit in memory at once.
`loading.load` makes a Predictor from a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seghiero_core.decode import decode, level_scores, written_ids
from seghiero_core.decode_modes import DEFAULT_DECODING, undecided_id
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.losses.bands import upsample_in_bands
from seghiero_core.model.tiling import (
    DEFAULT_OVERLAP,
    DEFAULT_TILE,
    CoarseForward,
    Forward,
    Picture,
    tiled_logits,
    to_batch,
)
from seghiero_core.predict.picture import empty_id, open_picture
from seghiero_core.predict.piece import Piece, RowJoiner
from seghiero_core.predict.prediction import Prediction
from seghiero_core.readers import Bands

WHOLE_PIXELS = 1 << 22
"""If no tile size is set, images up to this many pixels (2048x2048) are predicted in one piece."""


@dataclass(frozen=True)
class Predictor:
    """A trained network with its classes; call it with an image to get masks.

    Attributes:
        hierarchy: The classes.
        forward: The network: images B,C,H,W, uint8 or float32, of C bands, -> logits B,K,H,W float32. Where there is no
            data, float32 images are NaN.
        scores: What the logits mean, one of `decode.SCORES`.
        mode: A decoding mode, one of `decode_modes.MODES`.
        confidence: The threshold in 0..1 below which predictions back off to a coarser level (see `decode`), or None.
        tile: Side of the tiles of the sliding window, px. None means that images up to WHOLE_PIXELS are predicted in
            one piece, and larger ones in tiles of DEFAULT_TILE.
        overlap: What neighboring tiles share, px.
        batch_size: Tiles, or images of one size, that go through the network together.
        bands: How images are read, from the `dataset` section of the config; None for 8-bit RGB.
        origin: What the network was loaded from, as plain values: whatever changes its logits. An unfinished raster is
            continued only by a predictor of the same origin; None is like no other.
        coarse_forward: The network without the last upsampling, for images in one piece: their logits are then
            upsampled and decoded band by band, and those of the image's size are never stored. None: `forward` does.

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
    bands: Bands | None = None
    origin: Mapping[str, Any] | None = None
    coarse_forward: CoarseForward | None = None

    def __call__(self, image: Any) -> Prediction:
        """Predict the masks of an image.

        Args:
            image: A path, a Pillow image, an array H,W,3 or H,W, or a tensor 3,H,W; values 0..255. With `bands`, a
                path, an array H,W,C or a tensor C,H,W in stored units.

        Returns:
            Ids and confidence at every level.

        Raises:
            DataError: The file can't be read.
            UsageError: The argument is not an image, or has other bands than the network takes.
        """
        picture = open_picture(image, bands=self.bands)
        joiner = RowJoiner(picture.width)
        rows = [joiner.add(piece.left, [*piece.ids, *piece.confidence]) for (piece,) in self.pieces([picture])]
        maps = [np.concatenate(parts) for parts in zip(*filter(None, rows), strict=True)]
        names = [level.name for level in self.hierarchy.levels]
        ids, confidence = (dict(zip(names, half, strict=True)) for half in (maps[: len(names)], maps[len(names) :]))
        return Prediction(ids, confidence, self.hierarchy, picture, self.undecided)

    @property
    def channels(self) -> int:
        """The number of channels of the images."""
        return 3 if self.bands is None else self.bands.channels

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

    def pieces(self, pictures: Sequence[Picture], *, scores: bool = False, start: int = 0) -> Iterator[list[Piece]]:
        """Predict pictures of one size together, or one larger picture piece by piece.

        Args:
            pictures: Images of one size; a single one if it is tiled (see `is_tiled`).
            scores: Also give the scores of all classes.
            start: The row to go on from, px: the top of a piece. Those above are left out.

        Yields:
            One piece per picture: once the whole, or many rectangles in reading order.
        """
        if not self.is_tiled(pictures[0]):
            if start == 0:
                images = to_batch([picture.whole() for picture in pictures])
                logits, stride = self.coarse_forward(images) if self.coarse_forward else (self.forward(images), 1)
                yield self._decode(0, 0, logits, stride, images.shape[-2:], pictures, scores)
            return
        (picture,) = pictures
        options = {"tile": self.tile or DEFAULT_TILE, "overlap": self.overlap, "batch_size": self.batch_size}
        for top, left, logits in tiled_logits(picture, self.forward, start=start, **options):
            yield self._decode(top, left, logits[None], 1, logits.shape[-2:], [picture], scores)

    @torch.inference_mode()
    def _decode(
        self,
        top: int,
        left: int,
        logits: Tensor,
        stride: int,
        size: Sequence[int],
        pictures: Sequence[Picture],
        scores: bool,
    ) -> list[Piece]:
        """Decode logits B,C,h,w, which have yet to be upsampled by `stride`, to one piece of a size per picture."""
        batch, levels = len(pictures), self.hierarchy.levels
        largest = max(len(level.nodes) for level in levels) - 1
        dtype = np.uint8 if max(largest, self.undecided or 0) <= 255 else np.uint16
        all_ids = [np.empty((batch, *size), dtype) for _ in levels]
        all_confidence = [np.empty((batch, *size), np.float32) for _ in levels]
        all_scores = [np.empty((batch, len(level.nodes), *size), np.float16) for level in levels if scores]
        for rows, band in upsample_in_bands(logits, stride, size):
            decoded = decode(band, self.hierarchy, self.mode, self.confidence, scores=self.scores)
            level_ids = decoded.ids if self.undecided is None else written_ids(decoded, self.hierarchy)
            for whole, found in zip((*all_ids, *all_confidence), (*level_ids, *decoded.confidence), strict=True):
                whole[:, rows] = found.cpu().numpy()
            found_scores = level_scores(band, self.hierarchy, self.scores) if scores else []
            for whole, found in zip(all_scores, found_scores, strict=True):
                whole[:, :, rows] = found.half().cpu().numpy()
        pieces = []
        for i, picture in enumerate(pictures):
            empty = empty_id(self.hierarchy, self.undecided, picture)
            dtype = np.uint8 if max(largest, empty or 0) <= 255 else np.uint16
            ids = [ids[i].astype(dtype, copy=False) for ids in all_ids]
            confidence = [confidence[i] for confidence in all_confidence]
            valid = None if picture.valid is None else picture.valid(top, top + size[0], left, left + size[1])
            if valid is not None:
                ids = [np.where(valid, each, dtype(empty)) for each in ids]
                confidence = [np.where(valid, each, np.float32(0)) for each in confidence]
            scored = tuple(score[i] if valid is None else score[i] * valid for score in all_scores)
            pieces.append(Piece(top, left, tuple(ids), tuple(confidence), scored, valid))
        return pieces
