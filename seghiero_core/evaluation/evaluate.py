"""Measuring a model on the batches of a loader, over all processes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from seghiero_core.data.loaders import batches
from seghiero_core.decode_modes import Decoding
from seghiero_core.devices import any_process, broadcast_buffers, is_out_of_memory
from seghiero_core.events import Notify
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.metrics.metrics import Metrics
from seghiero_core.model.measuring import LEAF, MemoryLimit, count_images

_Batch = Mapping[str, torch.Tensor]


class ValidationExample(NamedTuple):
    """One image of a validation, to show beside its prediction.

    Attributes:
        image: H,W,3 uint8 RGB.
        target: H,W node indices or `IGNORE_INDEX`.
        ids: The prediction at each level, H,W each, in the level's own numbering; -1 if undecided.
        index: The position of the image in the data set.
    """

    image: np.ndarray
    target: np.ndarray
    ids: list[np.ndarray]
    index: int


class Evaluation(NamedTuple):
    """What `evaluate` returns.

    Attributes:
        metrics: The counts over all processes.
        examples: The images that were asked for, or those that follow them among this process's images.
        stopped: Whether a process stopped early; the metrics are then incomplete.
    """

    metrics: Metrics
    examples: list[ValidationExample]
    stopped: bool


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: Iterable[_Batch],
    hierarchy: Hierarchy,
    *,
    accelerator: Accelerator,
    scores: str = "softmax",
    decoding: Decoding = LEAF,
    background: str | None = None,
    wanted: Sequence[int] = (),
    stop: Callable[[], bool] = lambda: False,
    limit: MemoryLimit | None = None,
) -> Evaluation:
    """Measure a model on every batch of a loader, over all processes. Training mode is restored afterwards.

    The measures don't depend on the sizes of the batches, up to rounding.

    Args:
        model: Maps images B,3,H,W to an object with `.logits`, B,C,H,W.
        loader: Yields batches with "image" (B,3,H,W) and "target" (B,H,W).
        hierarchy: The class tree.
        accelerator: The run's accelerator.
        scores: What the logits mean, see `decode`.
        decoding: How the logits become classes.
        background: A class that a second mean IoU leaves out.
        wanted: Positions in the data set, ascending, of images to return; the batches then have "index".
        stop: Checked before every batch; once it returns True in a process, that process measures no further batch.
        limit: How much to compute at once; it is lowered when memory runs out. None: whole batches, and no way out.

    Returns:
        The metrics, the examples, and whether `stop` returned True in any process.
    """
    metrics, examples, wanted = Metrics(hierarchy, background=background), [], list(wanted)
    broadcast_buffers(accelerator, model)
    was_training = model.training
    model.eval()

    def forward(images: torch.Tensor) -> torch.Tensor:
        with accelerator.autocast():
            return model(images.to(accelerator.device)).logits.float()

    for batch in batches(loader):
        if stop():
            break
        images, target, start = batch["image"], batch["target"], 0
        while start < len(images):
            part = slice(start, start + limit.images if limit else None)
            counts = metrics.state()
            try:
                tile = limit.tile if limit else None
                decoded = count_images(forward, images[part], target[part], metrics, decoding, scores=scores, tile=tile)
            except (RuntimeError, MemoryError) as error:
                if not (limit and is_out_of_memory(error) and limit.lower()):
                    raise
                metrics.load_state(counts)
                continue
            for i in range(len(decoded.ids[0]) if wanted else 0):
                index = int(batch["index"][start + i])
                if wanted and index >= wanted[0]:
                    wanted = [later for later in wanted if later > index]
                    image = images[start + i].permute(1, 2, 0).cpu().numpy()
                    ids = [level_ids[i].cpu().numpy() for level_ids in decoded.ids]
                    examples.append(ValidationExample(image, target[start + i].cpu().numpy(), ids, index))
            start += len(decoded.ids[0])
    model.train(was_training)
    metrics.load_state(accelerator.reduce(metrics.counts.to(accelerator.device), "sum").cpu())
    (stopped,) = any_process(accelerator, stop())
    return Evaluation(metrics, examples, stopped)


def report_batches(loader: Collection[_Batch], step: int, notify: Notify) -> Iterator[_Batch]:
    """Report each batch of a validation as it is begun.

    Args:
        loader: The batches.
        step: The optimizer steps of the model that is measured.
        notify: Receives {"event": "validating", "step", "batch", "batches"}; the batch counts from 1.

    Yields:
        The batches of the loader.
    """
    event = {"event": "validating", "step": step, "batches": len(loader)}
    notify(event | {"batch": 1})
    for number, batch in enumerate(loader, 1):
        if number > 1:
            notify(event | {"batch": number})
        yield batch


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
