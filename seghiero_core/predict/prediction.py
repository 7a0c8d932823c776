"""The masks of one image, and the files that they are saved to."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from seghiero_core.data.pairing import PREDICTED_EXTENSIONS
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.model.tiling import Picture
from seghiero_core.predict.strip import Strip
from seghiero_core.predict.writer import PredictionWriter, blend, check_legend, level_colors, write_legend


@dataclass(frozen=True)
class Prediction:
    """The masks of one image, by level name, finest level first.

    Attributes:
        ids: H,W whole numbers each: the position of the class in `names[level]`, or `undecided` where the prediction
            backed off to a coarser level.
        confidence: H,W float32 each: the score in 0..1 of that class.
        hierarchy: The classes.
        picture: The image.
        undecided: See `Predictor.undecided`.

    Example:
        >>> from seghiero_core import load
        >>> prediction = load("my-project/runs/demo", device="cpu")("street.jpg")
        >>> prediction.ids["leaf"].shape == prediction.confidence["leaf"].shape
        True
        >>> prediction.names["leaf"][:3]
        ('sky', 'grass', 'water')
    """

    ids: dict[str, np.ndarray]
    confidence: dict[str, np.ndarray]
    hierarchy: Hierarchy = field(repr=False)
    picture: Picture = field(repr=False)
    undecided: int | None = None

    @property
    def names(self) -> dict[str, tuple[str, ...]]:
        """The class names of each level, in the order of the ids."""
        return {level.name: self.hierarchy.level_names(i) for i, level in enumerate(self.hierarchy.levels)}

    def overlay(self) -> np.ndarray:
        """Draw the classes over the image.

        Returns:
            H,W,3 uint8: half the image and half the color of the finest class that was decided on, black if none.
        """
        colors = level_colors(self.hierarchy, self.undecided)
        return blend(self.picture.whole(), list(self.ids.values()), colors, self.undecided)

    def save(self, path: str | Path) -> list[Path]:
        """Write the files that `seghiero predict` writes for an image.

        Args:
            path: The files' path without their endings; the ending of an image is dropped. Existing files are
                replaced.

        Returns:
            STEM.LEVEL.png for every level, STEM.overlay.png, and classes.json in the same folder.

        Raises:
            UsageError: When the folder holds a classes.json of another kind.
        """
        stem = Path(path)
        if stem.suffix.lower() in PREDICTED_EXTENSIONS:
            stem = stem.with_suffix("")
        check_legend(stem.parent)
        height, width = self.picture.height, self.picture.width
        writer = PredictionWriter(stem, self.hierarchy, height, width, probabilities=False, undecided=self.undecided)
        try:
            strip = Strip(0, tuple(self.ids.values()), tuple(self.confidence.values()))
            writer.write(strip, self.picture.whole())
            writer.commit()
        finally:
            writer.discard()
        return [*writer.paths, write_legend(stem.parent, self.hierarchy, self.undecided)]
