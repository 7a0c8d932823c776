"""Measuring a model over a split, in a training run and from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from seghiero_core.checkpoint import read_checkpoint
from seghiero_core.data.loaders import batches, eval_loader
from seghiero_core.data.samples import find_samples
from seghiero_core.decode import decode
from seghiero_core.engine import make_accelerator
from seghiero_core.errors import UsageError
from seghiero_core.hierarchy import Hierarchy
from seghiero_core.metrics import Metrics
from seghiero_core.trained import load_trained


class Picture(NamedTuple):
    """One validated image: H,W,3 uint8, its target H,W of node indices, and its prediction H,W per level."""

    image: np.ndarray
    target: np.ndarray
    ids: list[np.ndarray]


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: DataLoader,
    hierarchy: Hierarchy,
    *,
    accelerator: Accelerator,
    scores: str = "softmax",
    mode: str = "leaf",
    confidence: float | None = None,
    keep: int = 0,
) -> tuple[Metrics, list[Picture]]:
    """Measure `model` on every batch of `loader`, over all processes, and keep the first `keep` pictures.

    The model is left in the mode (training or not) in which it came.
    """
    metrics, pictures = Metrics(hierarchy), []
    training = model.training
    model.eval()
    for batch in batches(loader):
        images, target = batch["image"].to(accelerator.device), batch["target"].to(accelerator.device)
        with accelerator.autocast():
            logits = model(images).logits
        decoded = decode(logits.float(), hierarchy, mode, confidence, scores=scores)
        metrics.update(decoded, target)
        for i in range(min(len(images), keep - len(pictures))):
            ids = [of_level[i].cpu().numpy() for of_level in decoded.ids]
            pictures.append(Picture(images[i].permute(1, 2, 0).cpu().numpy(), target[i].cpu().numpy(), ids))
    model.train(training)
    metrics.load_state(accelerator.reduce(metrics.counts.to(accelerator.device), "sum").cpu())
    return metrics, pictures


def summary(metrics: Metrics) -> dict[str, Any]:
    """The measures as plain values, with `mean_miou`, the mean of the levels' mIoU."""
    measures = metrics.compute()
    known = [level["miou"] for level in measures["levels"] if level["miou"] is not None]
    return {"mean_miou": sum(known) / len(known) if known else None, **measures}


def evaluate_checkpoint(
    folder: Path,
    *,
    split: str = "val",
    mode: str = "leaf",
    confidence: float | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """The measures of the checkpoint in `folder` on a split of its data set, with the worst confusions per level."""
    config = read_checkpoint(folder).config
    section = getattr(config.dataset, split, None) if split in ("train", "val", "test") else None
    if section is None:
        have = [name for name in ("train", "val", "test") if getattr(config.dataset, name)]
        raise UsageError(f"--split {split}: the run's config has no such split; known: {', '.join(have)}.")
    training = config.training.model_copy(update={"device": device} if device else {})
    accelerator = make_accelerator(training)
    _, hierarchy, scores, model = load_trained(folder, accelerator.device)
    dataset = config.dataset
    samples = find_samples(section, name=split, image_suffix=dataset.image_suffix, mask_suffix=dataset.mask_suffix)
    loader = eval_loader(
        samples,
        hierarchy,
        batch_size=training.batch_size,
        workers=training.workers,
        device_type=accelerator.device.type,
    )
    metrics, _ = evaluate(
        model, loader, hierarchy, accelerator=accelerator, scores=scores, mode=mode, confidence=confidence
    )
    document = summary(metrics) | {"checkpoint": str(folder), "split": split, "images": len(samples), "decode": mode}
    for number, level in enumerate(document["levels"]):
        level["worst_confusions"] = metrics.worst_confusions(number)
    if confidence is not None:
        document["confidence"] = confidence
    return document
