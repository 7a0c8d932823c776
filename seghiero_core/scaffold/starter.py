"""The starter folder: commented configs to edit, and the synthetic data that they train on."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from seghiero_core.data.synthetic import write_data_set, write_mixed_data_set
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
_FOLDERS = """\
  train: {images: train/images, masks: train/masks}
  val: {images: val/images, masks: val/masks}
  # An image and its mask have the same name except for the extension. If the names end differently, give the endings:
  # image_suffix: _leftImg8bit
  # mask_suffix: _gtFine_labelTrainIds"""
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

MIXED_LABELS = "mixed-labels"
"""The recipe with data of fine and of coarse labels, beside those of `RECIPES`."""

STARTER_VALUES = {
    "title": "A small network that learns these images in a minute on two CPU cores.",
    "dataset": _FOLDERS,
    "backbone": _RESNET_18,
    "head": "  type: segformer # light, and reads all four feature maps\n  proj_dim: 64",
    "batch_size": "8",
    "lr": "2.0e-3",
    "epochs": "8",
    "validate_every": "2",
    "scale": "0.75, 1.33",
}
"""Values of the config's template for the starter without a recipe."""

_SOURCES = """\
  train: train # holds images/ and masks/; relative to the root of each source, like val
  sources: # data sets with mask values of their own; what a source leaves out comes from above and from `classes`
    - name: fine # 8 images, labeled as in `classes`
      root: fine # relative to the root above
      val: val # the other sources have no validation images
      weight: {fine} # each image is drawn {fine} times per epoch"""
_COARSE = """
    - name: coarse # 80 images, labeled coarsely
      root: coarse
      mask_suffix: _coarse # images/016.jpg has the mask masks/016_coarse.png
      ignore: 0 # the borders of objects
      labels: # what the mask values stand for
        10: [sky, water] # one of these
        20: ground # a group: grass, water or sand
        30: round
        40: angular
      weight: {coarse} # so that half of the drawn images are fine: 8 x {fine} of 160"""
_PSEUDO = """
    - name: pseudo # 80 images, labeled by `seghiero pseudo-label` with classes and groups
      root: unlabeled
      labels: # from unlabeled/train/masks/classes.yaml
        {{0: sky, 1: grass, 2: water, 3: sand, 4: disc, 5: ring, 6: brick, 7: triangle, 8: star, 9: round, 10: angular,
        11: ground, 12: shape}}
      weight: 0.5 # each image is drawn in every second epoch"""
_PSEUDO_LABEL = (
    "seghiero pseudo-label runs/mixed data/unlabeled/train/images --out data/unlabeled/train/masks --confidence 0.9"
)
_MIXED_HEAD = """\
  type: aspp

loss:
  preset: marginal_dice # its cross-entropy also learns from labels that are groups or sets"""

# The configs of the recipe: its file, its title and its sources. All draw 160 images per epoch.
_MIXED_CONFIGS = {
    "cfg.yaml": ("Trains on few finely labeled images and many coarsely labeled ones.", _SOURCES + _COARSE, (10, 1)),
    "fine-only.yaml": ("For comparison: trains on the finely labeled images alone, as long.", _SOURCES, (20, 0)),
    "pseudo.yaml": (
        f"Adds images that the first network has labeled. Write their masks first:\n#\n#     {_PSEUDO_LABEL}",
        _SOURCES + _COARSE + _PSEUDO,
        (10, 0.5),
    ),
}


def config_texts(recipe: str | None = None) -> dict[str, str]:
    """Render the starter's configs.

    Args:
        recipe: One of `RECIPES`, or `MIXED_LABELS`; None for the small network that trains in a minute.

    Returns:
        The text of `cfg.yaml`, and of further files of the recipe, by file name.

    Raises:
        UsageError: If the recipe is unknown.
    """
    known = sorted([*RECIPES, MIXED_LABELS])
    if recipe is not None and recipe not in known:
        raise UsageError(f"unknown recipe '{recipe}'.{nearest(recipe, known)} Known: {', '.join(known)}.")
    template = read_template(CONFIG_NAME)
    if recipe == MIXED_LABELS:
        own = {"head": _MIXED_HEAD, "epochs": "10", "validate_every": "1"}
        common = STARTER_VALUES | own | {"root": DATA_NAME}
        return {
            file: template.substitute(
                common,
                title=title,
                dataset=sources.format(fine=fine, coarse=coarse),
                file=file,
                name="mixed" if file == CONFIG_NAME else Path(file).stem,
            )
            for file, (title, sources, (fine, coarse)) in _MIXED_CONFIGS.items()
        }
    own = RECIPES[recipe] | {"epochs": "100", "validate_every": "1", "scale": "0.5, 2.0"} if recipe else {}
    values = STARTER_VALUES | own
    return {CONFIG_NAME: template.substitute(values, root=DATA_NAME, file=CONFIG_NAME, name=recipe or "demo")}


def write_starter(folder: Path | str, recipe: str | None = None) -> Path:
    """Write a config, or several, and the synthetic data to train on.

    They appear only when they are complete, and nothing is overwritten.

    Args:
        folder: Where to write the configs and `data/`; created if necessary.
        recipe: One of `RECIPES`, or `MIXED_LABELS`; None for the small network that trains in a minute.

    Returns:
        The path of the config to train first.

    Raises:
        UsageError: If the recipe is unknown, a config or the data exists already, or `folder` can't be created.
    """
    folder = Path(folder)
    texts = config_texts(recipe)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; name a folder for the starter.")
    existing = [str(folder / name) for name in (*texts, DATA_NAME) if (folder / name).exists()]
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
            write_data = write_mixed_data_set if recipe == MIXED_LABELS else write_data_set
            write_data(Path(partial) / DATA_NAME)
            for name, text in texts.items():
                (Path(partial) / name).write_text(text, encoding="utf-8")
            for name in (DATA_NAME, *texts):
                (Path(partial) / name).rename(folder / name)
    except BaseException:
        if first_new_folder:
            shutil.rmtree(first_new_folder, ignore_errors=True)
        raise
    return folder / CONFIG_NAME
