"""What a report shows of single images, collected while a split is measured."""

from __future__ import annotations

from bisect import insort
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from accelerate.utils import gather_object
from torch import Tensor

from seghiero_core.data.display import picture_of
from seghiero_core.data.samples import evenly_spaced
from seghiero_core.evaluation.pictures import Pictures, data_uri, make_pictures
from seghiero_core.hierarchy.tensors import tree_tensors
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.metrics.counts import confusion
from seghiero_core.metrics.measures import class_ious, mean_of_known, ratio
from seghiero_core.readers import Bands

MOST_IMAGES = 200
"""Images that a report shows. All of a smaller set; of a larger one the worst, the best and evenly spaced ones."""
_WORST, _BEST, _SPACED = 100, 50, 50
_MOST_CONFUSIONS = 20  # of each image, at each level
_IMAGES_OF_CELL = 6


@dataclass(frozen=True)
class MeasuredImage:
    """One image. The lists have an entry for each level, finest first.

    Attributes:
        index: The position in the data set.
        size: Height and width, px.
        miou: The mIoU of this image alone, None where it has no labels.
        pixel_accuracy: The same.
        wrong: W,3 each: true class, predicted class (-1 for none) and pixels; most pixels first.
        pictures: The pictures.
    """

    index: int
    size: tuple[int, int]
    miou: list[float | None]
    pixel_accuracy: list[float | None]
    wrong: list[np.ndarray]
    pictures: Pictures


class ImageCollector:
    """Collects the images of a split that a report shows, in bounded memory.

    Args:
        hierarchy: The class tree.
        images: The number of images in the split, over all processes.
        bands: What their channels are. Default: RGB.

    Attributes:
        found: The images so far by their position in the data set; after `gather` those of all processes.
    """

    def __init__(self, hierarchy: Hierarchy, images: int, bands: Bands | None = None) -> None:
        self.hierarchy, self.bands, self.found = hierarchy, bands, dict[int, MeasuredImage]()
        self._always = {*evenly_spaced(range(images), images if images <= MOST_IMAGES else _SPACED)}
        self._ranked: list[tuple[float, int]] = []  # the worst and the best; mean mIoU and position, worst first

    def add(self, index: int, image: Tensor, target: Tensor, prediction: Sequence[Tensor]) -> None:
        """Measure an image, and keep it if it is among those to show.

        Args:
            index: The position in the data set.
            image: 3,H,W uint8, or C,H,W with `bands`.
            target: H,W labels or `IGNORE_INDEX`.
            prediction: H,W class numbers of each level, finest first; -1 where it backed off.
        """
        tree = tree_tensors(self.hierarchy, prediction[0].device)
        node = tree.label_node[target.to(prediction[0].device)]  # ignored pixels are -1: the last one, without a class
        tables = [
            confusion(tree.class_of[level, node], ids, tree.labelled[level, node], size).cpu().numpy()
            for level, (ids, size) in enumerate(zip(prediction, tree.level_sizes, strict=True))
        ]
        miou = [mean_of_known(class_ious(table)) for table in tables]
        if not self._keeps(index, mean_of_known(miou)):
            return
        self.found[index] = MeasuredImage(
            index,
            tuple(image.shape[1:]),
            miou,
            [ratio(table[:, 1:].trace(), table.sum()) for table in tables],
            [_wrong_cells(table) for table in tables],
            make_pictures(picture_of(image, self.bands), target, prediction, self.hierarchy),
        )

    def gather(self) -> None:
        """Bring together what all processes have found; each must call it."""
        images = sorted(gather_object([*self.found.values()]), key=lambda image: image.index)
        self.found, self._ranked = {}, []
        for image in images:
            self.found[image.index] = image
            if not self._keeps(image.index, mean_of_known(image.miou)):
                del self.found[image.index]

    def _keeps(self, index: int, score: float | None) -> bool:
        """Whether to keep an image, so far; what has to make room for it is dropped."""
        if score is not None:
            insort(self._ranked, (score, index))
            if len(self._ranked) > _WORST + _BEST:
                _, gone = self._ranked.pop(_WORST)  # neither one of the worst nor of the best
                if gone not in self._always and gone != index:
                    del self.found[gone]
                if gone == index:
                    return index in self._always
            return True
        return index in self._always

    def document(self, describe: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
        """Describe the images as plain values.

        Args:
            describe: Returns "name", and "source" if there are sources, for a position in the data set.

        Returns:
            "images", in the order of the data set; "codes", the classes that a pixel of the pictures of truth and
            prediction stands for; and "cells", for each level the images in which a confusion is most frequent.
        """
        codes: dict[tuple[int, ...], int] = {}
        images = []
        for image in sorted(self.found.values(), key=lambda image: image.index):
            truth, prediction = image.pictures.truth_and_prediction(codes)
            images.append(
                {
                    **describe(image.index),
                    "height": image.size[0],
                    "width": image.size[1],
                    "miou": image.miou,
                    "pixel_accuracy": image.pixel_accuracy,
                    "confusion": [wrong[:_MOST_CONFUSIONS].tolist() for wrong in image.wrong],
                    "picture": data_uri(image.pictures.photo, "webp"),
                    "truth": data_uri(truth, "png"),
                    "prediction": data_uri(prediction, "png"),
                }
            )
        return {"images": images, "codes": [list(classes) for classes in codes], "cells": self._cells()}

    def _cells(self) -> list[dict[str, list[list[int]]]]:
        """For each level and confusion, the images with most pixels of it: position among the images, and pixels."""
        cells = [defaultdict(list) for _ in self.hierarchy.levels]
        for position, index in enumerate(sorted(self.found)):
            for level, wrong in zip(cells, self.found[index].wrong, strict=True):
                for truth, predicted, pixels in wrong.tolist():
                    level[f"{truth},{predicted}"].append([position, pixels])
        return [{cell: _most_first(found)[:_IMAGES_OF_CELL] for cell, found in level.items()} for level in cells]


def _most_first(pairs: list[list[int]]) -> list[list[int]]:
    return sorted(pairs, key=lambda pair: -pair[1])


def _wrong_cells(table: np.ndarray) -> np.ndarray:
    """W,3 (truth, prediction, pixels) of the wrong cells of a C,C+1 matrix, most pixels first."""
    truth, column = np.nonzero(table)
    wrong = truth != column - 1
    truth, column = truth[wrong], column[wrong]
    pixels = table[truth, column]
    return np.stack([truth, column - 1, pixels], axis=1)[np.argsort(-pixels, kind="stable")]
