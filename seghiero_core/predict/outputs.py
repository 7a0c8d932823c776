"""What `predict_files` needs of whatever is written for each image."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from seghiero_core.predict.strip import Strip


class OutputWriter(Protocol):
    """Writes the files of one image, such as `PredictionWriter`."""

    def write(self, strip: Strip, image: np.ndarray) -> None:
        """Append a strip.

        Args:
            strip: The next rows of the prediction.
            image: The same rows of the image, h,W,3 uint8.
        """

    def commit(self) -> dict[str, Any]:
        """Give the files their names.

        Returns:
            What was measured, plain values.
        """

    def discard(self) -> None:
        """Close and remove what is unfinished."""


class Outputs(Protocol):
    """What is written for every image, such as `PredictionOutputs`.

    Attributes:
        scores: Whether the strips need the scores of all classes.
    """

    scores: bool

    def paths(self, stem: Path) -> list[Path]:
        """List the files of an image.

        Args:
            stem: Their path without an ending.

        Returns:
            The paths.
        """

    def open(self, stem: Path, height: int, width: int) -> OutputWriter:
        """Begin the files of an image.

        Args:
            stem: Their path without an ending.
            height, width: The size of the image, px.

        Returns:
            Their writer.
        """
