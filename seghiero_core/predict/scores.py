"""The scores of all classes of one image, kept in files until they are complete: they may be larger than memory."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from seghiero_core.predict.piece import Piece


class ScoreFiles:
    """One .npy file per level, C,H,W float16.

    Args:
        paths: The files.
        height, width: The size of the image, px.
    """

    def __init__(self, paths: Sequence[Path], height: int, width: int) -> None:
        self.paths, self.size = paths, (height, width)

    def write(self, piece: Piece) -> None:
        """Write the scores of a piece to their places. Nothing stays mapped into memory.

        Args:
            piece: A piece with scores.
        """
        for path, scores in zip(self.paths, piece.scores, strict=True):
            mode, shape = ("r+", None) if path.exists() else ("w+", (len(scores), *self.size))
            kept = np.lib.format.open_memmap(path, mode, np.float16, shape)
            height, width = scores.shape[1:]
            kept[:, piece.top : piece.top + height, piece.left : piece.left + width] = scores

    def zip(self, path: Path, names: Sequence[str]) -> None:
        """Pack the files to an .npz file.

        Args:
            path: The file.
            names: The name of each array in it.
        """
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for kept, name in zip(self.paths, names, strict=True):
                archive.write(kept, f"{name}.npy")

    def remove(self) -> None:
        """Delete the files."""
        for path in self.paths:
            path.unlink(missing_ok=True)
