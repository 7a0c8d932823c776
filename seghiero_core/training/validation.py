"""The validation at the end of an epoch: saved before, measured, recorded, and added to the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from seghiero_core.data.display import shown_as_rgb
from seghiero_core.data.samples import caption, evenly_spaced
from seghiero_core.decode_modes import DEFAULT_DECODING
from seghiero_core.devices import any_process, is_out_of_memory
from seghiero_core.errors import DeviceError, shorten
from seghiero_core.evaluation.evaluate import (
    ValidationExample,
    evaluate,
    report_batches,
    source_summaries,
    summary,
)
from seghiero_core.evaluation.images import ImageCollector
from seghiero_core.evaluation.measurement import measured_data, measurement
from seghiero_core.events import Notify
from seghiero_core.figures import prediction_grid
from seghiero_core.metrics.metrics import Metrics
from seghiero_core.report.document import report_document, run_document
from seghiero_core.report.files import REPORT_NAME, write_report
from seghiero_core.runs import run_of
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
    collector = ImageCollector(run.hierarchy, len(samples), run.config.dataset.bands)
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
            collector=collector,
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
    before, measured = replace(progress), None
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
            measured = _measurement(run, progress.step, {**metrics, **sources}, evaluation.metrics, collector)
            _write_report(run, saver.checkpoint, progress, measured)
        saver.add_metrics({"step": progress.step, "epoch": progress.epoch, **metrics, **sources}, measured)
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


def _measurement(
    run: Run, step: int, metrics: dict[str, Any], counts: Metrics, collector: ImageCollector
) -> dict[str, Any]:
    """Describe a validation as `evaluate_checkpoint` does, for the report."""
    dataset, samples = run.config.dataset, run.val_loader.dataset.samples
    document = metrics | {
        "step": step,
        "split": "val",
        **measured_data(samples, dataset, "val"),
        "decode": DEFAULT_DECODING.mode,
        "precision": run.precision,
    }
    for name, facts in metrics.get("sources", {}).items():
        document["sources"][name] |= facts
    return measurement(document, counts, collector, samples, dataset)


def _write_report(run: Run, checkpoint: Path, progress: TrainingProgress, measured: dict[str, Any]) -> None:
    stopped = progress.has_stopped_early(run.config.training.early_stopping)
    status = "finished" if stopped or progress.step >= run.total_steps else "training"
    described = run_document(checkpoint, progress.step, run.config, measured, status=status)
    write_report(run_of(checkpoint) / REPORT_NAME, report_document([described], run.hierarchy))


def _draw(examples: Sequence[ValidationExample], run: Run) -> Image.Image:
    images, targets, ids, indices = zip(*examples, strict=True)
    if bands := run.config.dataset.bands:
        images = [shown_as_rgb(image, bands.rgb) for image in images]
    captions = [caption(run.val_loader.dataset.samples[index], run.config.dataset) for index in indices]
    return prediction_grid(images, targets, ids, run.hierarchy, captions=captions)


def _tiles_warning(run: Run) -> str:
    tile = run.val_limit.tile
    return (
        f"a validation image didn't fit in the memory of {run.accelerator.device}: validation goes on in tiles"
        f"{'' if tile is None else f' of {tile} px'}, and near their borders predictions may differ."
    )


def _unmeasured_warning(run: Run) -> str:
    training = run.config.training
    masks = shorten(list({str(sample.mask.parent): None for sample in run.val_loader.dataset.samples}))
    level = "" if training.monitor == "mean_miou" else f" at level {training.monitor}"
    stopping = "" if training.early_stopping is None else ", and training.early_stopping never stops the run"
    return (
        f"no pixel of the validation set ({masks}) is labeled{level}, so {training.monitor} "
        f"can't be measured: `best` is the last validated checkpoint{stopping}. Add masks with labels."
    )
