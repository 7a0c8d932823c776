"""What is measured of a prediction while it is written: the shares of the classes and the mean confidence."""

from __future__ import annotations

from typing import Any

import numpy as np

from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.predict.piece import Piece


class Tally:
    """Counts the pixels of a prediction, piece by piece; pixels without data don't count.

    Args:
        hierarchy: The classes.
        state: What `state` returned, to go on from.
    """

    def __init__(self, hierarchy: Hierarchy, state: dict[str, Any] | None = None) -> None:
        self.hierarchy = hierarchy
        self.pixels, self.valid = (state["pixels"], state["valid"]) if state else (0, 0)
        sizes = [len(level.nodes) for level in hierarchy.levels]
        self.counts = [np.array(counts) for counts in state["counts"]] if state else [np.zeros(n, int) for n in sizes]
        self.confidence = list(state["confidence"]) if state else [0.0] * len(sizes)

    def add(self, piece: Piece) -> None:
        """Count a piece.

        Args:
            piece: The piece.
        """
        pixels = piece.ids[0].size
        self.pixels += pixels
        self.valid += pixels if piece.valid is None else int(np.count_nonzero(piece.valid))
        for level, (ids, confidence) in enumerate(zip(piece.ids, piece.confidence, strict=True)):
            counts = self.counts[level]  # the id of pixels without a class comes after those of the classes
            counts += np.bincount(ids.ravel(), minlength=len(counts))[: len(counts)]
            self.confidence[level] += float(confidence.sum(dtype=np.float64))  # 0 where there is no data

    def state(self) -> dict[str, Any]:
        """Collect what has been counted.

        Returns:
            Plain values.
        """
        counts = [counts.tolist() for counts in self.counts]
        return {"pixels": self.pixels, "valid": self.valid, "counts": counts, "confidence": list(self.confidence)}

    def measures(self, *, undecided: bool, nodata: bool) -> dict[str, Any]:
        """Compute the measures.

        Args:
            undecided: Whether predictions may back off.
            nodata: Whether pixels may be without data.

        Returns:
            "shares" {level: {class: share of the pixels with data, 0..1}}, "confidence" {level: mean, 0..1}, with
            `undecided` "undecided" {level: share, 0..1}, and with `nodata` "nodata": the share of the pixels without
            data, 0..1. Shares are 0 if no pixel has data.
        """
        pixels = max(self.valid, 1)
        shares, confidence, open_shares = {}, {}, {}
        for number, level in enumerate(self.hierarchy.levels):
            names, counts = self.hierarchy.level_names(number), self.counts[number]
            shares[level.name] = {name: int(count) / pixels for name, count in zip(names, counts, strict=True)}
            confidence[level.name] = self.confidence[number] / pixels
            open_shares[level.name] = (self.valid - int(counts.sum())) / pixels
        measures: dict[str, Any] = {"shares": shares, "confidence": confidence}
        if undecided:
            measures["undecided"] = open_shares
        if nodata:
            measures["nodata"] = 1 - self.valid / self.pixels
        return measures
