"""Writing a PNG file row by row, for images larger than memory (PNG specification, third edition)."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np

_HEADER_FIELDS = {"palette": (3, 8), "gray16": (0, 16), "rgb": (2, 8)}
"""Color type and bit depth of each kind."""


class PngWriter:
    """Writes a PNG file row by row.

    Args:
        path: The file to write.
        height, width: The size in px.
        kind: What the rows hold: "palette" (h,W uint8 indices), "gray16" (h,W uint16) or "rgb" (h,W,3 uint8).
        palette: N,3 uint8, for the kind "palette".
    """

    def __init__(self, path: Path, height: int, width: int, kind: str, palette: np.ndarray | None = None):
        self.kind = kind
        self.file = path.open("wb")
        self.compressor = zlib.compressobj(level=3)
        color_type, depth = _HEADER_FIELDS[kind]
        self.file.write(b"\x89PNG\r\n\x1a\n")
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0))
        if palette is not None:
            self._chunk(b"PLTE", palette.astype(np.uint8).tobytes())

    def write(self, rows: np.ndarray) -> None:
        """Append rows.

        Args:
            rows: h,W or h,W,3, as `kind` says.
        """
        if self.kind == "rgb":  # filter 1, differences to the left neighbor, makes photographs smaller
            rows = rows.copy()
            rows[:, 1:] -= rows[:, :-1].copy()
        data = rows.astype(">u2" if self.kind == "gray16" else np.uint8, copy=False).reshape(len(rows), -1)
        lines = np.empty((len(rows), 1 + data.shape[1] * data.itemsize), np.uint8)
        lines[:, 0] = 1 if self.kind == "rgb" else 0
        lines[:, 1:] = np.ascontiguousarray(data).view(np.uint8)
        self._data(self.compressor.compress(lines))

    def finish(self) -> None:
        """Write the end of the image and close the file."""
        self._data(self.compressor.flush())
        self._chunk(b"IEND", b"")
        self.file.close()

    def abort(self) -> None:
        """Close the file, complete or not."""
        self.file.close()

    def _data(self, compressed: bytes) -> None:
        if compressed:
            self._chunk(b"IDAT", compressed)

    def _chunk(self, name: bytes, data: bytes) -> None:
        self.file.write(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)))
