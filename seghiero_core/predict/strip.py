"""Some rows of a prediction: what large images are predicted in."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Strip(NamedTuple):
    """Some whole rows of a prediction; the tuples have one entry per level, finest first.

    Attributes:
        top: The first row, px.
        ids: h,W whole numbers each, as in `Prediction`.
        confidence: h,W float32 each, as in `Prediction`.
        scores: C,h,W float16 each, the scores in 0..1 of all classes; empty unless asked for.

    Example:
        >>> from seghiero_core import load
        >>> from seghiero_core.predict.picture import open_picture
        >>> predictor = load("my-project/runs/demo", device="cpu")
        >>> [(strip,)] = predictor.strips([open_picture("street.jpg")], scores=True)
        >>> strip.top, len(strip.ids), strip.scores[0].shape[1:] == strip.ids[0].shape
        (0, 3, True)
    """

    top: int
    ids: tuple[np.ndarray, ...]
    confidence: tuple[np.ndarray, ...]
    scores: tuple[np.ndarray, ...] = ()


def empty_strip(like: Strip, width: int) -> Strip:
    """Make a strip to be filled by `paste`.

    Args:
        like: A piece of the same rows.
        width: The width of the strip, px.

    Returns:
        The strip, with undefined values.
    """
    return Strip(like.top, _widen(like.ids, width), _widen(like.confidence, width), _widen(like.scores, width))


def _widen(arrays: tuple[np.ndarray, ...], width: int) -> tuple[np.ndarray, ...]:
    return tuple(np.empty((*array.shape[:-1], width), array.dtype) for array in arrays)


def paste(piece: Strip, strip: Strip, left: int) -> None:
    """Copy a piece of the same rows into a strip.

    Args:
        piece: The piece.
        strip: What `empty_strip` returned.
        left: Its distance from the left edge of the strip, px.
    """
    sources = (*piece.ids, *piece.confidence, *piece.scores)
    targets = (*strip.ids, *strip.confidence, *strip.scores)
    for source, target in zip(sources, targets, strict=True):
        target[..., left : left + source.shape[-1]] = source
