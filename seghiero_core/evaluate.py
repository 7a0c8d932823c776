"""Measuring a model on a split: during training, and from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from seghiero_core.checkpoint import read_checkpoint
from seghiero_core.data.loaders import batches, eval_loader
from seghiero_core.data.samples import split_samples
from seghiero_core.decode import decode
from seghiero_core.decode_modes import Decoding, check_decoding
from seghiero_core.devices import any_process, check_device, make_accelerator
from seghiero_core.errors import UsageError, nearest
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.metrics.metrics import Metrics
from seghiero_core.model.trained import load_trained

_LEAF = Decoding()


class ValidationExample(NamedTuple):
    """One image of a validation, to show beside its prediction.

    Attributes:
        image: H,W,3 uint8 RGB.
        target: H,W node indices or `IGNORE_INDEX`.
        ids: The prediction at each level, H,W each, in the level's own numbering; -1 if undecided.
    """

    image: np.ndarray
    target: np.ndarray
    ids: list[np.ndarray]


class Evaluation(NamedTuple):
    """What `evaluate` returns.

    Attributes:
        metrics: The counts over all processes.
        examples: The first images of this process, as many as were asked for.
        stopped: Whether a process stopped early; the metrics are then incomplete.
    """

    metrics: Metrics
    examples: list[ValidationExample]
    stopped: bool


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: Iterable[Mapping[str, torch.Tensor]],
    hierarchy: Hierarchy,
    *,
    accelerator: Accelerator,
    scores: str = "softmax",
    decoding: Decoding = _LEAF,
    background: str | None = None,
    num_examples: int = 0,
    stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Measure a model on every batch of a loader, over all processes. Training mode is restored afterwards.

    Args:
        model: Maps images B,3,H,W to an object with `.logits`, B,C,H,W.
        loader: Yields batches with "image" (B,3,H,W) and "target" (B,H,W).
        hierarchy: The class tree.
        accelerator: The run's accelerator.
        scores: What the logits mean, see `decode`.
        decoding: How the logits become classes.
        background: A class that a second mean IoU leaves out.
        num_examples: How many images to return.
        stop: Checked before every batch; once it returns True in a process, that process measures no further batch.

    Returns:
        The metrics, the examples, and whether `stop` returned True in any process.
    """
    metrics, examples = Metrics(hierarchy, background=background), []
    was_training = model.training
    model.eval()
    for batch in batches(loader):
        if stop():
            break
        images, target = batch["image"].to(accelerator.device), batch["target"].to(accelerator.device)
        with accelerator.autocast():
            logits = model(images).logits
        decoded = decode(logits.float(), hierarchy, decoding.mode, scores=scores)
        metrics.update(decoded, target, confidence=decoding.confidence)
        for i in range(min(len(images), num_examples - len(examples))):
            image = images[i].permute(1, 2, 0).cpu().numpy()
            ids = [level_ids[i].cpu().numpy() for level_ids in decoded.ids]
            examples.append(ValidationExample(image, target[i].cpu().numpy(), ids))
    model.train(was_training)
    metrics.load_state(accelerator.reduce(metrics.counts.to(accelerator.device), "sum").cpu())
    (stopped,) = any_process(accelerator, stop())
    return Evaluation(metrics, examples, stopped)


def summary(metrics: Metrics) -> dict[str, Any]:
    """Compute all metrics as plain values.

    Args:
        metrics: The counts.

    Returns:
        What `Metrics.compute` returns, and `mean_miou`, the mean of the levels' mIoU, in 0..1 or None.
    """
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
    """Measure a checkpoint on a split of its data set.

    The precision is the run's, if the device supports it. With several processes, each measures a share of the images,
    and all return the metrics of the whole split.

    Args:
        folder: The checkpoint folder.
        split: train, val or test.
        mode: A decoding, one of `decode_modes.MODES`.
        confidence: Back off to a coarser class below this score, in 0..1. Default: never.
        background: A class that a second mean IoU leaves out.
        device: auto, cpu, cuda, cuda:N or mps. Default: the run's.
        batch_size: Images computed together, on each process. Default: the run's.

    Returns:
        What `summary` returns, with the worst confusions of each level, the back-off curve and what was measured.

    Raises:
        UsageError: When there is no such split, decoding, threshold or class.
        CheckpointError: When the checkpoint is damaged or can't be used.
        DeviceError: When this machine has no such device.
    """
    check_decoding(mode, confidence)
    checkpoint = read_checkpoint(folder)
    config = checkpoint.config
    samples = split_samples(config.dataset, split)
    training = config.training
    device = check_device(device or training.device)
    # Only fp16 is missing on some devices; with the run's precision the metrics equal those of its own validation.
    precision = "auto" if training.precision == "fp16" and device == "cpu" else training.precision
    accelerator = make_accelerator(device, precision)
    _, hierarchy, scores, model = load_trained(checkpoint, accelerator.device)
    if background is not None and background not in hierarchy.nodes:
        raise UsageError(f"--background: unknown class '{background}'.{nearest(background, hierarchy.nodes)}")
    loader = eval_loader(
        samples,
        hierarchy,
        batch_size=batch_size or training.batch_size,
        workers=training.workers,
        device_type=accelerator.device.type,
        processes=accelerator.num_processes,
    )
    accelerator.even_batches = False  # otherwise the last images are counted twice
    metrics, _, _ = evaluate(
        model,
        accelerator.prepare(loader),
        hierarchy,
        accelerator=accelerator,
        scores=scores,
        decoding=Decoding(mode, confidence),
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
