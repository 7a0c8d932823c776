"""Load a trained model from its checkpoint for inference, without running code from the file or using the internet."""

from __future__ import annotations

from typing import NamedTuple

import torch

from seghiero_core.checkpoint import Checkpoint
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.losses.combine import build_loss
from seghiero_core.model.factories import build_trained_model
from seghiero_core.model.segmentation import SegmentationModel


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
