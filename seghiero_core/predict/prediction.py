"""The masks of one image, and the files that they are saved to."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import numpy as np

from seghiero_core.data.pairing import PREDICTED_EXTENSIONS
from seghiero_core.decode_modes import undecided_id
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.model.tiling import Picture
from seghiero_core.predict.legend import blend, check_legend, level_colors, write_legend
from seghiero_core.predict.picture import empty_id
from seghiero_core.predict.piece import Piece
from seghiero_core.predict.writer import PredictionOutputs


@dataclass(frozen=True)
class Prediction:
    """The masks of one image, by level name, finest level first.

    Attributes:
        ids: H,W whole numbers each: the position of the class in `names[level]`, or `undecided` where the prediction
            backed off to a coarser level, or `nodata`.
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

    @property
    def nodata(self) -> int | None:
        """The id of pixels without data; None if the image can't have any."""
        return None if self.picture.valid is None else undecided_id(self.hierarchy)

    def overlay(self) -> np.ndarray:
        """Draw the classes over the image.

        Returns:
            H,W,3 uint8: half the image and half the color of the finest class that was decided on, black if none.
        """
        empty = empty_id(self.hierarchy, self.undecided, self.picture)
        colors = level_colors(self.hierarchy, empty)
        return blend(self.picture.shown(*self._whole), list(self.ids.values()), colors, empty)

    def save(self, path: str | Path) -> list[Path]:
        """Write the files that `seghiero predict` writes for an image.

        Args:
            path: The files' path without their endings; the ending of an image is dropped. Existing files are
                replaced.

        Returns:
            STEM.LEVEL.png for every level (STEM.LEVEL.tif for a raster), STEM.overlay.png, and classes.json in the same
            folder.

        Raises:
            UsageError: When the folder holds a classes.json of another kind.
        """
        stem = Path(path)
        if stem.suffix.lower() in PREDICTED_EXTENSIONS:
            stem = stem.with_suffix("")
        check_legend(stem.parent)
        writer = PredictionOutputs(self.hierarchy, self.undecided).open(stem, self.picture, {"prediction": uuid4().hex})
        try:
            valid = None if self.picture.valid is None else self.picture.valid(*self._whole)
            piece = Piece(0, 0, tuple(self.ids.values()), tuple(self.confidence.values()), valid=valid)
            writer.write(piece, self.picture.shown(*self._whole))
            files = writer.commit()["files"]
        finally:
            writer.discard()
        return [*map(Path, files), write_legend(stem.parent, self.hierarchy, self.undecided)]

    @property
    def _whole(self) -> tuple[int, int, int, int]:
        """The image as a window of itself."""
        return 0, self.picture.height, 0, self.picture.width
