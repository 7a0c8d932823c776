"""Small pictures of an image and of its class maps, for a report."""

from __future__ import annotations

import io
import zlib
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from seghiero_core.figures import truth_at_level
from seghiero_core.hierarchy.tree import Hierarchy

SIDE = 320
"""The longest side of a picture, px."""
_QUALITY = 70  # of WebP
_MOST_KEYS = 2**62


@dataclass(frozen=True)
class Pictures:
    """The pictures of one image.

    Attributes:
        photo: The image as a WebP file.
        size: Height and width of the pictures, px.
        rows: R,L: the different combinations of classes in the truth and in the prediction, a class number of every
            level each, -1 for none.
        maps: 2,H,W int32 positions in `rows` of the truth and of the prediction, compressed.
    """

    photo: bytes
    size: tuple[int, int]
    rows: np.ndarray
    maps: bytes

    def truth_and_prediction(self, codes: dict[tuple[int, ...], int]) -> tuple[bytes, bytes]:
        """Draw the truth and the prediction as PNG files whose pixels hold R + 256 G + 65536 B = a code.

        Args:
            codes: The code of each combination of classes; new ones are added.

        Returns:
            The two files.
        """
        numbers = np.array([codes.setdefault(tuple(row), len(codes)) for row in self.rows.tolist()])
        palette = (numbers[:, None] >> np.array([0, 8, 16]) & 255).astype(np.uint8)
        maps = np.frombuffer(zlib.decompress(self.maps), np.int32).reshape(2, *self.size)
        return tuple(_png(each, palette) for each in maps)


def make_pictures(image: np.ndarray, target: Tensor, prediction: Sequence[Tensor], hierarchy: Hierarchy) -> Pictures:
    """Draw an image, and pick the pixels of its truth and prediction that the pictures show.

    Args:
        image: H,W,3 uint8 RGB.
        target: H,W labels or `IGNORE_INDEX`.
        prediction: H,W class numbers of each level, finest first; -1 for none.
        hierarchy: The class tree.

    Returns:
        The pictures.
    """
    height, width = image.shape[:2]
    scale = min(1, SIDE / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    photo = io.BytesIO()
    pixels = Image.fromarray(image)
    pixels.resize(size[::-1], Image.Resampling.BOX, reducing_gap=2).save(photo, "WEBP", quality=_QUALITY, method=2)
    target, *predicted = (_nearest(each, size).cpu().numpy() for each in (target, *prediction))
    truth = [truth_at_level(target, level, hierarchy) for level in range(len(predicted))]
    classes = np.stack([truth, predicted], axis=1)  # L,2,h,w
    _, first, maps = np.unique(_keys(classes), return_index=True, return_inverse=True)
    rows = classes.reshape(len(classes), -1)[:, first].T
    return Pictures(photo.getvalue(), size, rows, zlib.compress(maps.astype(np.int32).tobytes(), 1))


def data_uri(content: bytes, kind: str) -> str:
    """Write a picture's file as a URI that holds it.

    Args:
        content: The file.
        kind: "webp" or "png".

    Returns:
        The data URI.
    """
    return f"data:image/{kind};base64,{b64encode(content).decode()}"


def _nearest(values: Tensor, size: tuple[int, int]) -> Tensor:
    """The H,W values at the centers of the pixels of a new height and width, px."""
    rows, columns = (
        ((torch.arange(new, device=values.device) + 0.5) * old / new).long()
        for new, old in zip(size, values.shape, strict=True)
    )
    return values[rows[:, None], columns]


def _keys(classes: np.ndarray) -> np.ndarray:
    """A number for each pixel of L,... class numbers that is equal where the classes of all levels are."""
    keys, count = np.zeros(classes.shape[1:], np.int64), 1
    for level in classes + 1:
        size = int(level.max()) + 1
        if count * size > _MOST_KEYS:
            keys = np.unique(keys, return_inverse=True)[1].reshape(keys.shape)
            count = int(keys.max()) + 1
        keys, count = keys * size + level, count * size
    return keys.ravel().astype(np.uint16 if count <= 2**16 else np.int64)  # short numbers are sorted faster


def _png(positions: np.ndarray, palette: np.ndarray) -> bytes:
    """H,W positions in a palette as a PNG file, with a palette where PNG has room for it."""
    if len(palette) <= 256:
        picture = Image.fromarray(positions.astype(np.uint8), "P")
        picture.putpalette(palette.tobytes())
    else:
        picture = Image.fromarray(palette[positions])
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
