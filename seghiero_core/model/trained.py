"""A trained network, from its checkpoint, as inference needs it. Neither runs foreign code nor uses the network."""

from __future__ import annotations

from typing import NamedTuple

import torch

from seghiero_core.checkpoint import Checkpoint
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.losses.combine import build_loss
from seghiero_core.model.factories import build_trained_model
from seghiero_core.model.segmentation import SegmentationModel


class Trained(NamedTuple):
    """A network in eval mode, its classes, and what its logits mean (`scores` of `decode`)."""

    checkpoint: Checkpoint
    hierarchy: Hierarchy
    scores: str
    model: SegmentationModel


def load_trained(checkpoint: Checkpoint, device: torch.device | str) -> Trained:
    """The network of a checkpoint, on `device`. Raises CheckpointError."""
    config, hierarchy = checkpoint.config, checkpoint.config.hierarchy
    # Class weights shape the training only, and those counted from the training set can't be had here.
    loss = build_loss({**config.loss, "class_weights": None}, hierarchy)
    model = build_trained_model(config, loss.num_channels, checkpoint.model_tensors()).to(device)
    if config.training.channels_last:
        model = model.to(memory_format=torch.channels_last)
    return Trained(checkpoint, hierarchy, loss.scores, model)
