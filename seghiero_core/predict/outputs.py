"""What `predict_files` needs of whatever is written for each image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from seghiero_core.events import Notify
from seghiero_core.model.tiling import Picture
from seghiero_core.predict.piece import Piece


class OutputWriter(Protocol):
    """Writes the files of one image, such as `PredictionWriter`. That of a raster has a `start`, see `RasterWriter`."""

    def write(self, piece: Piece, image: np.ndarray) -> None:
        """Add a piece.

        Args:
            piece: The next piece of the prediction, in reading order.
            image: The same part of the image, h,w,3 uint8.
        """

    def commit(self) -> dict[str, Any]:
        """Give the files their names.

        Returns:
            What was measured, plain values.
        """

    def suspend(self) -> None:
        """Close what is unfinished. What a later process can go on from stays, anything else is removed."""

    def discard(self) -> None:
        """Close and remove what is unfinished."""


class Outputs(Protocol):
    """What is written for every image, such as `PredictionOutputs`.

    Attributes:
        scores: Whether the pieces need the scores of all classes.
    """

    scores: bool

    def paths(self, stem: Path, *, raster: bool = False) -> list[Path]:
        """List the files of an image.

        Args:
            stem: Their path without an ending.
            raster: Whether the image is a raster.

        Returns:
            The paths.
        """

    def open(self, stem: Path, picture: Picture, made_by: Mapping[str, Any], notify: Notify) -> OutputWriter:
        """Begin the files of an image, or go on with those of a raster.

        Args:
            stem: Their path without an ending.
            picture: The image.
            made_by: Plain values that decide on the prediction of a raster, see `Unfinished`.
            notify: Receives the events of `Unfinished`.

        Returns:
            Their writer.
        """
