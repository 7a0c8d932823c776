"""The starter folder: a commented config to edit, and the synthetic data that it trains on."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from seghiero_core.data.synthetic import write_data_set
from seghiero_core.errors import UsageError, nearest
from seghiero_core.scaffold.templates import read_template

CONFIG_NAME = "cfg.yaml"
DATA_NAME = "data"

_PRETRAINED = """
  pretrained: true # ImageNet weights, downloaded once and then cached
  # Without internet, give the path of weights that you copied here, or false to start from random weights:
  # pretrained: weights/backbone.safetensors
  # pretrained: false"""
_CHECKPOINTING = "\n  # gradient_checkpointing: true # if memory runs out: needs much less, takes about a third longer"
_RESNET_18 = "  type: resnet\n  depth: 18\n  pretrained: false # true downloads ImageNet weights, which learn faster"

RECIPES: dict[str, dict[str, str]] = {
    "max-accuracy": {
        "title": "Maximum accuracy: MiT-B5 with the full SegFormer decoder. Needs a large GPU.",
        "backbone": f"  type: segformer\n  variant: mit-b5{_PRETRAINED}{_CHECKPOINTING}",
        "head": "  type: segformer\n  proj_dim: 256",
        "batch_size": "4",
        "lr": "6.0e-4",
    },
    "balanced": {
        "title": "Balanced: ResNet-101 with atrous spatial pyramid pooling.",
        "backbone": f"  type: resnet\n  depth: 101{_PRETRAINED}",
        "head": "  type: aspp",
        "batch_size": "8",
        "lr": "1.0e-3",
    },
    "max-speed": {
        "title": "Maximum speed: MiT-B0 with the lightest decoder.",
        "backbone": f"  type: segformer\n  variant: mit-b0{_PRETRAINED}",
        "head": "  type: extremely_fast_segformer\n  proj_dim: 64",
        "batch_size": "16",
        "lr": "6.0e-4",
    },
    "budget-gpu": {
        "title": "For a GPU with less than 8 GB: ResNet-50 with atrous spatial pyramid pooling.",
        "backbone": f"  type: resnet\n  depth: 50{_PRETRAINED}{_CHECKPOINTING}",
        "head": "  type: aspp",
        "batch_size": "4",
        "lr": "1.0e-3",
    },
}
"""The four recommended combinations of backbone and head, as values of the config's template."""

STARTER_VALUES = {
    "title": "A small network that learns these images in two minutes on two CPU cores.",
    "backbone": _RESNET_18,
    "head": "  type: aspp",
    "batch_size": "8",
    "lr": "2.0e-3",
    "epochs": "16",
    "scale": "0.75, 1.33",
}
"""Values of the config's template for the starter without a recipe."""


def config_text(recipe: str | None = None) -> str:
    """Render the starter's config.

    Args:
        recipe: One of `RECIPES`; None for the small network that trains in minutes.

    Returns:
        The text of `cfg.yaml`.

    Raises:
        UsageError: If the recipe is unknown.
    """
    if recipe is not None and recipe not in RECIPES:
        raise UsageError(f"unknown recipe '{recipe}'.{nearest(recipe, RECIPES)} Known: {', '.join(sorted(RECIPES))}.")
    values = RECIPES[recipe] | {"epochs": "100", "scale": "0.5, 2.0"} if recipe else STARTER_VALUES
    return read_template(CONFIG_NAME).substitute(values, root=DATA_NAME, file=CONFIG_NAME, name=recipe or "demo")


def write_starter(folder: Path | str, recipe: str | None = None) -> Path:
    """Write a config and the synthetic data that it trains on.

    Both appear only when they are complete, and nothing is overwritten.

    Args:
        folder: Where to write `cfg.yaml` and `data/`; created if necessary.
        recipe: One of `RECIPES`; None for the small network that trains in minutes.

    Returns:
        The path of the config.

    Raises:
        UsageError: If the recipe is unknown, the config or the data exists already, or `folder` can't be created.
    """
    folder = Path(folder)
    text = config_text(recipe)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; name a folder for the starter.")
    existing = [str(folder / name) for name in (CONFIG_NAME, DATA_NAME) if (folder / name).exists()]
    if existing:
        raise UsageError(f"{' and '.join(existing)} would be overwritten. Name another folder, or remove them first.")
    first_new_folder = next((path for path in (*reversed(folder.parents), folder) if not path.exists()), None)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise UsageError(
            f"{folder} can't be created ({error.strerror}); name a folder that you can write to."
        ) from error
    try:
        with tempfile.TemporaryDirectory(prefix=".starter-", dir=folder) as partial:
            write_data_set(Path(partial) / DATA_NAME)
            (Path(partial) / CONFIG_NAME).write_text(text, encoding="utf-8")
            for name in (DATA_NAME, CONFIG_NAME):
                (Path(partial) / name).rename(folder / name)
    except BaseException:
        if first_new_folder:
            shutil.rmtree(first_new_folder, ignore_errors=True)
        raise
    return folder / CONFIG_NAME
