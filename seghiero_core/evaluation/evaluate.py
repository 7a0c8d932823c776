"""Measuring a model on the batches of a loader, over all processes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from seghiero_core.config.schema import DatasetConfig
from seghiero_core.data.loaders import batches
from seghiero_core.decode import back_off
from seghiero_core.decode_modes import DEFAULT_DECODING, Decoding
from seghiero_core.devices import any_process, broadcast_buffers, is_out_of_memory
from seghiero_core.evaluation.images import ImageCollector
from seghiero_core.events import Notify
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.metrics.measures import mean_of_known
from seghiero_core.metrics.metrics import Metrics
from seghiero_core.model.measuring import MemoryLimit, count_images

_Batch = Mapping[str, torch.Tensor]


class ValidationExample(NamedTuple):
    """One image of a validation, to show beside its prediction.

    Attributes:
        image: H,W,C as in the batch.
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
        sources: The same for the images of each source alone, by its position in `dataset.sources`.
        examples: The images that were asked for, or those that follow them among this process's images.
        stopped: Whether a process stopped early; the metrics are then incomplete.
    """

    metrics: Metrics
    sources: dict[int, Metrics]
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
    decoding: Decoding = DEFAULT_DECODING,
    background: str | None = None,
    sources: Sequence[int | None] = (),
    wanted: Sequence[int] = (),
    stop: Callable[[], bool] = lambda: False,
    limit: MemoryLimit | None = None,
    collector: ImageCollector | None = None,
) -> Evaluation:
    """Measure a model on every batch of a loader, over all processes. Training mode is restored afterwards.

    The measures don't depend on the sizes of the batches, up to rounding.

    Args:
        model: As `SegmentationModel`: maps images B,N,H,W, with `upsample=False`, to an object with `.logits`, B,C,h,w,
            and their `.stride`.
        loader: Yields batches with "image" (B,N,H,W) and "target" (B,H,W).
        hierarchy: The class tree.
        accelerator: The run's accelerator.
        scores: What the logits mean, see `decode`.
        decoding: How the logits become classes.
        background: A class that a second mean IoU leaves out.
        sources: For each image of the data set, the position of its source in `dataset.sources` or None; the batches
            then have "index".
        wanted: Positions in the data set, ascending, of images to return; the batches then have "index".
        stop: Checked before every batch; once it returns True in a process, that process measures no further batch.
        limit: How much to compute at once; it is lowered when memory runs out. None: whole batches, and no way out.
        collector: Receives every image with its prediction, and in the end those of all processes; the batches then
            have "index".

    Returns:
        The metrics of all images and of each source, the examples, and whether `stop` returned True in any process.
    """
    parts = {source: Metrics(hierarchy, background=background) for source in sorted({*sources}) or [None]}
    examples, wanted = [], list(wanted)
    broadcast_buffers(accelerator, model)
    was_training = model.training
    model.eval()

    def forward(images: torch.Tensor) -> tuple[torch.Tensor, int]:
        with accelerator.autocast():
            output = model(images.to(accelerator.device), upsample=False)
        return output.logits.float(), output.stride

    for batch in batches(loader):
        if stop():
            break
        images, target, start = batch["image"], batch["target"], 0
        indices = torch.as_tensor(batch["index"]).tolist() if wanted or sources or collector else []
        metrics = [parts[sources[index]] for index in indices] if sources else [*parts.values()] * len(images)
        while start < len(images):
            part = slice(start, start + limit.images if limit else None)
            counts = [each.state() for each in parts.values()]
            try:
                tile = limit.tile if limit else None
                decoded = count_images(
                    forward, images[part], target[part], metrics[part], decoding, scores=scores, tile=tile
                )
            except (RuntimeError, MemoryError) as error:
                if not (limit and is_out_of_memory(error) and limit.lower()):
                    raise
                for each, before in zip(parts.values(), counts, strict=True):
                    each.load_state(before)
                continue
            shown = decoded if decoding.confidence is None else back_off(decoded, decoding.confidence)
            for i in range(len(decoded.ids[0]) if collector else 0):
                ids = [level_ids[i] for level_ids in shown.ids]
                collector.add(indices[start + i], images[start + i], target[start + i], ids)
            for i in range(len(decoded.ids[0]) if wanted else 0):
                index = indices[start + i]
                if wanted and index >= wanted[0]:
                    wanted = [later for later in wanted if later > index]
                    image = images[start + i].permute(1, 2, 0).cpu().numpy()
                    ids = [level_ids[i].cpu().numpy() for level_ids in decoded.ids]
                    examples.append(ValidationExample(image, target[start + i].cpu().numpy(), ids, index))
            start += len(decoded.ids[0])
    model.train(was_training)
    counts = accelerator.reduce(torch.stack([each.counts.to(accelerator.device) for each in parts.values()]), "sum")
    for each, reduced in zip(parts.values(), counts.cpu(), strict=True):
        each.load_state(reduced)
    total = Metrics(hierarchy, background=background)
    total.load_state(counts.cpu().sum(dim=0))
    (stopped,) = any_process(accelerator, stop())
    if collector and not stopped:
        collector.gather()
    return Evaluation(total, {} if None in parts else parts, examples, stopped)


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
    return {"mean_miou": mean_of_known([level["miou"] for level in measures["levels"]]), **measures}


def source_summaries(evaluation: Evaluation, dataset: DatasetConfig) -> dict[str, dict[str, Any]]:
    """Compute all metrics of each source as plain values.

    Args:
        evaluation: What `evaluate` returned.
        dataset: The config's `dataset` section.

    Returns:
        What `summary` returns, by the name of the source, for those with images; empty for a data set without sources.
    """
    sources = dataset.sources or []
    return {source.name: summary(evaluation.sources[i]) for i, source in enumerate(sources) if i in evaluation.sources}
