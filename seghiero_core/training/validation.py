"""The validation at the end of an epoch: saved before, measured, recorded, and added to the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from seghiero_core.config.schema import DatasetConfig
from seghiero_core.data.samples import Sample, caption, evenly_spaced
from seghiero_core.devices import any_process, is_out_of_memory
from seghiero_core.errors import DeviceError, shorten
from seghiero_core.evaluation.evaluate import (
    ValidationExample,
    evaluate,
    report_batches,
    source_summaries,
    summary,
)
from seghiero_core.events import Notify
from seghiero_core.figures import prediction_grid
from seghiero_core.training.interrupts import Interrupted, StopSignal
from seghiero_core.training.progress import TrainingProgress, monitored
from seghiero_core.training.records import write_record
from seghiero_core.training.run import Run
from seghiero_core.training.saver import Saver

_EXAMPLES = 4  # images in validation.png


def validate(
    run: Run, folder: Path, progress: TrainingProgress, saver: Saver, stop: StopSignal, notify: Notify
) -> dict[str, Any]:
    """Save the run, validate it, and add the result to the checkpoint; every process must call it.

    A run that is killed meanwhile resumes at this validation, and writes the same records as one that isn't.

    Args:
        run: The run, after the last step of an epoch.
        folder: The run folder.
        progress: The progress of the run, which is updated.
        saver: Writes the checkpoint.
        stop: Whether a signal asks the run to stop.
        notify: Receives the events "validating" and "validation", and warnings.

    Returns:
        The "validation" event.

    Raises:
        Interrupted: When a signal asked the run to stop during the validation.
    """
    accelerator, monitor = run.accelerator, run.config.training.monitor
    samples = run.val_loader.dataset.samples
    saver.save()
    with explained_out_of_memory(run):
        evaluation = evaluate(
            run.evaluated_model(),
            report_batches(run.val_loader, progress.step, notify),
            run.hierarchy,
            accelerator=accelerator,
            scores=run.loss.scores,
            sources=[sample.source for sample in samples],
            wanted=evenly_spaced(range(len(samples)), _EXAMPLES) if accelerator.is_main_process else (),
            stop=lambda: stop.requested,
            limit=run.val_limit,
        )
    (in_tiles,) = any_process(accelerator, run.val_limit.tile is not None)
    if in_tiles and not run.val_limit.reported:
        run.val_limit.reported = True
        notify({"event": "warning", "text": _tiles_warning(run)})
    if evaluation.stopped:
        raise Interrupted(f"stopped in the validation after step {progress.step}; --resume repeats it.")
    metrics, by_source = summary(evaluation.metrics), source_summaries(evaluation, run.config.dataset)
    sources = {"sources": by_source} if by_source else {}
    if progress.validated_step is None and monitored(metrics, monitor) is None:
        notify({"event": "warning", "text": _unmeasured_warning(run)})
    before = replace(progress)
    best = progress.add_validation(metrics, monitor)
    record = {
        "event": "validation",
        "step": progress.step,
        "epoch": progress.epoch,
        "best": best,
        "metrics": metrics,
        **sources,
    }
    try:
        write_record(run, folder, record, notify)
        if accelerator.is_main_process:
            _draw(evaluation.examples, run).save(folder / "validation.png")
        saver.add_metrics({"step": progress.step, "epoch": progress.epoch, **metrics, **sources})
    except OSError:  # it isn't kept, so a resumed run has to repeat it
        vars(progress).update(vars(before))
        raise
    return record


@contextmanager
def explained_out_of_memory(run: Run) -> Iterator[None]:
    """Name the validation in the error when memory runs out in the block.

    Args:
        run: The run.

    Yields:
        Nothing.

    Raises:
        DeviceError: When memory ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        limit = run.val_limit
        size = f"in tiles of {limit.tile} px" if limit.tile else f"with {limit.images} at once"
        raise DeviceError(
            f"{run.accelerator.device} ran out of memory in the validation, which computes images {size}. "
            "Stop other programs that use the memory, or use smaller validation images or a smaller network."
        ) from error


def _draw(examples: Sequence[ValidationExample], run: Run) -> Image.Image:
    images, targets, ids, indices = zip(*examples, strict=True)
    captions = [_caption(run.val_loader.dataset.samples[index], run.config.dataset) for index in indices]
    return prediction_grid(images, targets, ids, run.hierarchy, captions=captions)


def _caption(sample: Sample, dataset: DatasetConfig) -> str:
    folder = dataset.parts[sample.source or 0].val.images
    return caption(sample, str(sample.image.relative_to(folder)), dataset)


def _tiles_warning(run: Run) -> str:
    tile = run.val_limit.tile
    return (
        f"a validation image didn't fit in the memory of {run.accelerator.device}: validation goes on in tiles"
        f"{'' if tile is None else f' of {tile} px'}, and near their borders predictions may differ."
    )


def _unmeasured_warning(run: Run) -> str:
    training = run.config.training
    masks = shorten([str(part.val.masks) for part in run.config.dataset.parts if part.val])
    level = "" if training.monitor == "mean_miou" else f" at level {training.monitor}"
    stopping = "" if training.early_stopping is None else ", and training.early_stopping never stops the run"
    return (
        f"no pixel of the validation set ({masks}) is labeled{level}, so {training.monitor} "
        f"can't be measured: `best` is the last validated checkpoint{stopping}. Add masks with labels."
    )
