"""The formats that can be converted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from seghiero_core.data.converters.ade20k import read_ade20k
from seghiero_core.data.converters.camvid import read_camvid
from seghiero_core.data.converters.cityscapes import read_cityscapes
from seghiero_core.data.converters.coco import read_coco
from seghiero_core.data.converters.colors import read_colors
from seghiero_core.data.converters.conversion import Conversion, Options
from seghiero_core.data.converters.labelme import read_labelme
from seghiero_core.data.converters.mapillary import read_mapillary
from seghiero_core.data.converters.supervisely import read_supervisely
from seghiero_core.data.converters.voc import read_voc

_NAMED = frozenset({"--config", "--unlabeled"})


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        read: Finds the images to convert.
        options: The options of the command that it takes, beside those that all take.
    """

    read: Callable[[Path, Options], Conversion]
    options: frozenset[str] = frozenset()


FORMATS = {
    "coco": Format(read_coco, _NAMED),
    "labelme": Format(read_labelme, _NAMED),
    "cityscapes": Format(read_cityscapes),
    "camvid": Format(read_camvid, frozenset({"--ignore"})),
    "ade20k": Format(read_ade20k),
    "mapillary": Format(read_mapillary),
    "voc": Format(read_voc, frozenset({"--config", "--ignore"})),
    "supervisely": Format(read_supervisely, _NAMED),
    "colors": Format(read_colors, frozenset({"--config", "--source", "--ignore"})),
}
"""The formats by name."""
