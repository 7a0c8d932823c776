"""Files whose EXIF orientation says that they have to be turned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_UNDONE_BY = {  # how to turn an upright image so that a viewer turns it back: EXIF 2.3, tag 0x0112
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def save_turned(upright: np.ndarray | Image.Image, path: Path, orientation: int, **options: Any) -> None:
    """Save an upright image as a camera would: turned, with the orientation that turns it back."""
    image = upright if isinstance(upright, Image.Image) else Image.fromarray(upright)
    if orientation in _UNDONE_BY:
        image = image.transpose(_UNDONE_BY[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, **options)


def move_after_pixels(path: Path, kind: bytes = b"eXIf") -> None:
    """Move the only chunk of this kind in a PNG to its end, where the standard allows EXIF and text, too."""
    content = path.read_bytes()
    chunks, start = [], 8
    while start < len(content):
        length = 12 + int.from_bytes(content[start : start + 4], "big")
        chunks.append(content[start : start + length])
        start += length
    (moved,) = (chunk for chunk in chunks if chunk[4:8] == kind)
    others = [chunk for chunk in chunks if chunk is not moved]
    path.write_bytes(content[:8] + b"".join([*others[:-1], moved, others[-1]]))
