"""The starter folder: a config that is comfortable to edit, and the synthetic data that it trains on."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from seghiero_core.data.synthetic import write_data_set
from seghiero_core.errors import UsageError, nearest
from seghiero_core.scaffold.templates import read_template

CONFIG_NAME = "cfg.yaml"
DATA_NAME = "data"

PRETRAINED = """
  pretrained: true # downloads ImageNet weights once, then they are cached
  # Without network: a path to weights that you copied here, or false to start from random ones
  # pretrained: weights/backbone.safetensors
  # pretrained: false"""
CHECKPOINTING = "\n  # gradient_checkpointing: true # if memory runs out: much less of it for about a third more time"
RESNET_18 = "  type: resnet\n  depth: 18\n  pretrained: false # true downloads ImageNet weights, which learn quicker"

RECIPES: dict[str, dict[str, str]] = {
    "max-accuracy": {
        "title": "Maximum accuracy: MiT-B5 with the full SegFormer decoder. Wants a large GPU.",
        "backbone": f"  type: segformer\n  variant: mit-b5{PRETRAINED}{CHECKPOINTING}",
        "head": "  type: segformer\n  proj_dim: 256",
        "batch_size": "4",
        "lr": "6.0e-4",
    },
    "balanced": {
        "title": "Balanced: ResNet-101 with atrous spatial pyramid pooling.",
        "backbone": f"  type: resnet\n  depth: 101{PRETRAINED}",
        "head": "  type: aspp",
        "batch_size": "8",
        "lr": "1.0e-3",
    },
    "max-speed": {
        "title": "Maximum speed: MiT-B0 with the lightest decoder.",
        "backbone": f"  type: segformer\n  variant: mit-b0{PRETRAINED}",
        "head": "  type: extremely_fast_segformer\n  proj_dim: 64",
        "batch_size": "16",
        "lr": "6.0e-4",
    },
    "budget-gpu": {
        "title": "For a GPU with less than 8 GB: ResNet-50 with atrous spatial pyramid pooling.",
        "backbone": f"  type: resnet\n  depth: 50{PRETRAINED}{CHECKPOINTING}",
        "head": "  type: aspp",
        "batch_size": "4",
        "lr": "1.0e-3",
    },
}
"""The four recommended combinations of backbone and head, as values for the config's template."""

QUICK = {
    "title": "A small network that learns these pictures in two minutes on two CPU cores.",
    "backbone": RESNET_18,
    "head": "  type: aspp",
    "batch_size": "8",
    "lr": "2.0e-3",
    "epochs": "16",
    "scale": "0.75, 1.33",
}
"""The values of the starter's own config."""


def config_text(recipe: str | None = None) -> str:
    """The text of the starter's config, or of a recipe's. Raises UsageError for an unknown recipe."""
    if recipe is not None and recipe not in RECIPES:
        raise UsageError(
            f"there is no recipe '{recipe}'.{nearest(recipe, RECIPES)} Known: {', '.join(sorted(RECIPES))}."
        )
    values = RECIPES[recipe] | {"epochs": "100", "scale": "0.5, 2.0"} if recipe else QUICK
    return read_template(CONFIG_NAME).substitute(values, root=DATA_NAME, file=CONFIG_NAME, name=recipe or "demo")


def write_starter(folder: Path | str, recipe: str | None = None) -> Path:
    """Write `cfg.yaml` and `data/` into `folder`, which is made if need be, and return the config's path.

    Both appear only once they are whole. Raises UsageError for an unknown recipe, where one of the two is there
    already (nothing is overwritten), or where `folder` is a file.
    """
    folder = Path(folder)
    text = config_text(recipe)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; name a folder for the starter.")
    there = [str(folder / name) for name in (CONFIG_NAME, DATA_NAME) if (folder / name).exists()]
    if there:
        raise UsageError(f"{' and '.join(there)} would be overwritten. Name another folder, or remove them first.")
    made = next((path for path in (*reversed(folder.parents), folder) if not path.exists()), None)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise UsageError(f"{folder} can't be made ({error.strerror}); name a folder that you may write.") from error
    try:
        with tempfile.TemporaryDirectory(prefix=".starter-", dir=folder) as partial:
            write_data_set(Path(partial) / DATA_NAME)
            (Path(partial) / CONFIG_NAME).write_text(text, encoding="utf-8")
            for name in (DATA_NAME, CONFIG_NAME):
                (Path(partial) / name).rename(folder / name)
    except BaseException:
        if made:  # only what this call made
            shutil.rmtree(made, ignore_errors=True)
        raise
    return folder / CONFIG_NAME
