"""Measuring a model over a split, in a training run and from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from seghiero_core.checkpoint import read_checkpoint
from seghiero_core.data.loaders import batches, eval_loader
from seghiero_core.data.samples import split_samples
from seghiero_core.decode import decode
from seghiero_core.decode_modes import check_decoding
from seghiero_core.devices import any_process, check_device, make_accelerator
from seghiero_core.errors import UsageError, nearest
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.metrics.metrics import Metrics
from seghiero_core.model.trained import load_trained


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
    background: str | None = None,
    keep: int = 0,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[Metrics, list[Picture], bool]:
    """Measure `model` on every batch of `loader`, over all processes, and keep the first `keep` pictures.

    Where `stop` comes true in a process it goes no further; the last value says so, and the measures mean nothing. The
    model is left in the mode (training or not) in which it came.
    """
    metrics, pictures = Metrics(hierarchy, background=background), []
    training = model.training
    model.eval()
    for batch in batches(loader):
        if stop():
            break
        images, target = batch["image"].to(accelerator.device), batch["target"].to(accelerator.device)
        with accelerator.autocast():
            logits = model(images).logits
        decoded = decode(logits.float(), hierarchy, mode, scores=scores)
        metrics.update(decoded, target, confidence=confidence)
        for i in range(min(len(images), keep - len(pictures))):
            ids = [of_level[i].cpu().numpy() for of_level in decoded.ids]
            pictures.append(Picture(images[i].permute(1, 2, 0).cpu().numpy(), target[i].cpu().numpy(), ids))
    model.train(training)
    metrics.load_state(accelerator.reduce(metrics.counts.to(accelerator.device), "sum").cpu())
    (stopped,) = any_process(accelerator, stop())
    return metrics, pictures, stopped


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
    background: str | None = None,
    device: str | None = None,
    batch_size: int | None = None,
) -> dict[str, Any]:
    """The measures of the checkpoint in `folder` on a split of its data set, with the worst confusions per level.

    `device` and `batch_size` are the run's where they are left out, and so is the precision where the device has it.
    Of several processes each measures a share of the images, and all return the measures of the whole. Raises
    UsageError for a split, decoding, threshold or `background` (a class left out of a second mean) that there isn't.
    """
    check_decoding(mode, confidence)
    checkpoint = read_checkpoint(folder)
    config = checkpoint.config
    samples = split_samples(config.dataset, split)
    training = config.training
    device = check_device(device or training.device)
    # Of the precisions only fp16 may be missing; in all others the measures are those of the run's own validation.
    precision = "auto" if (training.precision, device) == ("fp16", "cpu") else training.precision
    accelerator = make_accelerator(device, precision)
    _, hierarchy, scores, model = load_trained(checkpoint, accelerator.device)
    if background is not None and background not in hierarchy.nodes:
        raise UsageError(f"--background: there is no class '{background}'.{nearest(background, hierarchy.nodes)}")
    loader = eval_loader(
        samples,
        hierarchy,
        batch_size=batch_size or training.batch_size,
        workers=training.workers,
        device_type=accelerator.device.type,
        processes=accelerator.num_processes,
    )
    accelerator.even_batches = False  # every image counts once
    metrics, _, _ = evaluate(
        model,
        accelerator.prepare(loader),
        hierarchy,
        accelerator=accelerator,
        scores=scores,
        mode=mode,
        confidence=confidence,
        background=background,
    )
    accelerator.end_training()
    document = summary(metrics) | {"checkpoint": str(folder), "split": split, "images": len(samples), "decode": mode}
    for number, level in enumerate(document["levels"]):
        level["worst_confusions"] = metrics.worst_confusions(number)
    document["back_off_curve"] = metrics.back_off_curve()
    if confidence is not None:
        document["confidence"] = confidence
    if background is not None:
        document["background"] = background
    return document
