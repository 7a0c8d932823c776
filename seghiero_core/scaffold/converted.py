"""The config of a converted data set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from seghiero_core.atomic import write_new_files
from seghiero_core.scaffold.starter import CONFIG_NAME, RECIPES
from seghiero_core.scaffold.templates import read_template

_RECIPE = RECIPES["budget-gpu"]
_LARGEST_CROP = 512
_STEP = 32  # px: the coarsest stride, so that crops need no padding


def write_converted_config(
    out: Path, name: str, classes: Mapping[str, Any], splits: Iterable[str], size: tuple[int, int]
) -> Path:
    """Write `cfg.yaml` for a folder with SPLIT/images and SPLIT/masks, unless it exists.

    Args:
        out: The folder.
        name: The name of the runs, such as the format that was converted.
        classes: The `classes` section.
        splits: "train", "val" and perhaps "test".
        size: (H, W) of most images, px; random crops are as large, up to 512 px.

    Returns:
        The path of the config.
    """
    path = out / CONFIG_NAME
    if path.exists():
        return path
    section = yaml.safe_dump(
        {"classes": dict(classes)}, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None
    )
    height, width = (max(_STEP, min(_LARGEST_CROP, side // _STEP * _STEP)) for side in size)
    text = read_template("converted.yaml").substitute(
        title=f"Converted from the format {name} by `seghiero data convert`.",
        splits="\n".join(f"  {split}: {split} # holds images/ and masks/" for split in splits),
        classes=section.rstrip(),
        backbone=_RECIPE["backbone"],
        head=_RECIPE["head"],
        batch_size=_RECIPE["batch_size"],
        lr=_RECIPE["lr"],
        height=height,
        width=width,
        name=name,
    )
    write_new_files({path: text})
    return path
