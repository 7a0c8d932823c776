"""What decides on the prediction of a raster, so that an unfinished one is continued only by the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

from seghiero_core.predict.predictor import Predictor
from seghiero_core.version import __version__


def decisive_values(predictor: Predictor, image: Path) -> dict[str, Any]:
    """Collect what the masks of an image depend on.

    Args:
        predictor: The network.
        image: The file.

    Returns:
        Plain values by name. They equal those of another call only if the masks would be the same; a file that was
        changed is told by its size and its time of change.
    """
    stamp = image.stat()
    # a network of unknown origin is like no other
    network = {"network": uuid4().hex} if predictor.origin is None else dict(predictor.origin)
    return {
        "image": [str(image.resolve()), stamp.st_size, stamp.st_mtime_ns],
        **network,
        "decoding": [predictor.mode, predictor.confidence],
        "tile": predictor.tile,
        "overlap": predictor.overlap,
        "batch size": predictor.batch_size,
        "version of seghiero": __version__,
    }
