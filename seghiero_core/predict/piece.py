"""A rectangle of a prediction: what large images are predicted in."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Piece(NamedTuple):
    """A rectangle of a prediction; the tuples have one entry per level, finest first.

    Attributes:
        top, left: Its first row and column, px.
        ids: h,w whole numbers each, as in `Prediction`.
        confidence: h,w float32 each, as in `Prediction`.
        scores: C,h,w float16 each, the scores in 0..1 of all classes; empty unless asked for.
        valid: h,w bool: which pixels hold data. None: all do.

    Example:
        >>> from seghiero_core import load
        >>> from seghiero_core.predict.picture import open_picture
        >>> predictor = load("my-project/runs/demo", device="cpu")
        >>> [(piece,)] = predictor.pieces([open_picture("street.jpg")], scores=True)
        >>> piece.top, piece.left, len(piece.ids), piece.scores[0].shape[1:] == piece.ids[0].shape
        (0, 0, 3, True)
    """

    top: int
    left: int
    ids: tuple[np.ndarray, ...]
    confidence: tuple[np.ndarray, ...]
    scores: tuple[np.ndarray, ...] = ()
    valid: np.ndarray | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, px."""
        return self.ids[0].shape


class RowJoiner:
    """Joins arrays of rectangles, which come from left to right, to whole rows.

    Args:
        width: The width of the image, px.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.rows: list[np.ndarray] = []

    def add(self, left: int, arrays: list[np.ndarray]) -> list[np.ndarray] | None:
        """Add the arrays of the next rectangle.

        Args:
            left: Its first column, px.
            arrays: h,w or h,w,C each; the same number, heights and types for all rectangles of a row.

        Returns:
            The arrays of the whole rows once the last rectangle is there, else None.
        """
        width = arrays[0].shape[1]
        if width == self.width:
            return arrays
        if left == 0:
            self.rows = [np.empty((len(array), self.width, *array.shape[2:]), array.dtype) for array in arrays]
        for rows, array in zip(self.rows, arrays, strict=True):
            rows[:, left : left + width] = array
        if left + width < self.width:
            return None
        rows, self.rows = self.rows, []
        return rows
