"""Load a trained model from its checkpoint for inference, without running code from the file or using the internet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from seghiero_core.checkpoint import Checkpoint
from seghiero_core.config.loading import load_config, override_config
from seghiero_core.config.readers import REQUIRED_SPLITS, SPLITS, relocate
from seghiero_core.config.schema import Config, DatasetConfig
from seghiero_core.errors import UsageError, nearest, shorten
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.losses.combine import build_loss
from seghiero_core.model.factories import build_trained_model
from seghiero_core.model.segmentation import SegmentationModel
from seghiero_core.readers import READERS

DATA_KEYS = tuple(f"dataset.{key}" for key in ("type", "root", *SPLITS, "sources"))
"""The keys of the data set, which may differ from the run's wherever a checkpoint is used with images.

So may the options of its reader."""


class TrainedModel(NamedTuple):
    """A trained model and what is needed to decode its logits.

    Attributes:
        checkpoint: The checkpoint that the model was loaded from.
        hierarchy: The classes.
        scores: How the logits are to be read: the `scores` argument of `seghiero_core.decode.decode`.
        model: The network, in eval mode.
    """

    checkpoint: Checkpoint
    hierarchy: Hierarchy
    scores: str
    model: SegmentationModel


def load_trained(checkpoint: Checkpoint, device: torch.device | str) -> TrainedModel:
    """Build the model of a checkpoint and load its weights.

    Args:
        checkpoint: The checkpoint.
        device: Where the model is placed.

    Returns:
        The model in eval mode, with its classes.

    Raises:
        CheckpointError: If the checkpoint is damaged or doesn't fit its config.
    """
    config, hierarchy = checkpoint.config, checkpoint.config.hierarchy
    # Class weights matter only in training, and the training set that they may be counted from is not available here.
    loss = build_loss({**config.loss, "class_weights": None}, hierarchy)
    model = build_trained_model(config, loss.num_channels, checkpoint.model_tensors()).to(device)
    if config.training.channels_last:
        model = model.to(memory_format=torch.channels_last)
    return TrainedModel(checkpoint, hierarchy, loss.scores, model)


def with_other_data(
    checkpoint: Checkpoint,
    *,
    config: Path | None = None,
    overrides: Sequence[str] = (),
    keys: Sequence[str] = DATA_KEYS,
) -> Checkpoint:
    """Use a checkpoint with another data set, or with other settings, than it was trained with.

    Args:
        checkpoint: The checkpoint.
        config: The YAML file of a config, whose data set and mask values replace the run's.
        overrides: Strings "section.key=value", applied last; relative paths are relative to the current folder.
        keys: The keys that `overrides` may set, including what is below them.

    Returns:
        The checkpoint with the changed config.

    Raises:
        UsageError: When `config` has other classes, or an override is malformed or sets another key.
        ConfigError: When a value is wrong.
    """
    changed = checkpoint.config
    if config is not None:
        other = load_config(config, required=REQUIRED_SPLITS)
        _check_same_tree(other.hierarchy, checkpoint.config.hierarchy, config)
        dataset = _with_own_statistics(other.dataset, changed.dataset, config)
        sections = {name: getattr(changed, name) for name in Config.model_fields}
        changed = Config(**{**sections, "dataset": dataset, "classes": other.classes})
    options = {f"dataset.{option}" for part in changed.dataset.parts for option in READERS.get(part.type).options}
    for override in overrides:
        _check_key(override, [*keys, *sorted(options)])
    if overrides:
        _check_moves(changed, overrides)
        changed = override_config(changed, overrides)
    return replace(checkpoint, config=changed)


def _check_same_tree(found: Hierarchy, expected: Hierarchy, path: Path) -> None:
    """Raise UsageError unless both trees have the same nodes, in the same order, below the same parents."""
    if found.nodes == expected.nodes and (found.parents == expected.parents).all():
        return
    parts = []
    for title, names in (
        ("only there", [name for name in found.nodes if name not in expected.nodes]),
        ("only in the run", [name for name in expected.nodes if name not in found.nodes]),
    ):
        if names:
            parts.append(f"{title}: {shorten(names, 5)}")
    detail = "; ".join(parts) or "the names are the same, but their order or their tree differs"
    raise UsageError(f"--config {path}: its classes are not those of the run ({detail}).")


def _with_own_statistics(found: DatasetConfig, own: DatasetConfig, path: Path) -> DatasetConfig:
    """Another data set with the mean and std of the run; raises UsageError unless both have the same bands."""
    if found.channels != own.channels:
        theirs, ours = ("8-bit RGB" if each is None else f"{each} bands" for each in (found.channels, own.channels))
        raise UsageError(f"--config {path}: its images are {theirs} (dataset.channels), those of the run are {ours}.")
    return found.model_copy(update={"mean": own.mean, "std": own.std})


def _check_key(override: str, keys: Sequence[str]) -> None:
    name = override.partition("=")[0]
    if any(name == key or name.startswith(f"{key}.") for key in keys):
        return
    raise UsageError(
        f"--set {override}: this key can't be changed for a trained checkpoint.{nearest(name, keys)} "
        f"Keys that can: {', '.join(keys)}."
    )


def _check_moves(config: Config, overrides: Sequence[str]) -> None:
    """Raise UsageError where a new `dataset.root` would move nothing."""
    dataset = config.dataset
    folders: list[Path] = []
    for part in dataset.parts:
        for values in (part, *filter(None, (getattr(part, name) for name in SPLITS))):
            relocate(part.type, values.model_extra, lambda path, _: folders.append(Path(path)))
    names = [override.partition("=")[0] for override in overrides]
    if "dataset.root" in names and not any(folder.is_relative_to(dataset.root) for folder in folders):
        key = "dataset.sources.0.root" if dataset.sources else "dataset.val.images and dataset.val.masks"
        example = f", such as {folders[0]}" if folders else ""
        raise UsageError(
            f"--set dataset.root: the run's folders are not below its dataset.root ({dataset.root}){example}; set "
            f"{key}."
        )
