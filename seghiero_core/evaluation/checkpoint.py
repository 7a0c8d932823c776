"""Measuring a checkpoint on a split of its data set, or on other data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import torch

from seghiero_core.checkpoint import Checkpoint, read_checkpoint
from seghiero_core.config.schema import DatasetConfig, SplitConfig, TrainingConfig
from seghiero_core.data.loaders import eval_loader
from seghiero_core.data.samples import find_samples, split_samples
from seghiero_core.decode_modes import DEFAULT_DECODING, Decoding, check_decoding
from seghiero_core.devices import any_process, check_device, make_accelerator
from seghiero_core.errors import DataError, UsageError, nearest
from seghiero_core.evaluation.evaluate import evaluate, report_batches, source_summaries, summary
from seghiero_core.evaluation.images import ImageCollector
from seghiero_core.evaluation.measurement import measured_data, measurement, weights_digest
from seghiero_core.events import Notify, ignore_events
from seghiero_core.metrics.metrics import Metrics
from seghiero_core.model.measuring import MemoryLimit
from seghiero_core.model.trained import DATA_KEYS, load_trained, with_other_data
from seghiero_core.readers import READERS

EVAL_KEYS = (
    *DATA_KEYS,
    *(f"training.{key}" for key in ("val_batch_size", "channels_last", "device", "precision", "workers")),
)
"""The keys of a run's config that may be changed for a measurement."""


class CheckpointEvaluation(NamedTuple):
    """What `evaluate_checkpoint` returns.

    Attributes:
        document: What `summary` returns, with the worst confusions of each level, the back-off curve and what was
            measured: plain values for JSON. For a data set with sources, "sources" has the same of each by itself.
        metrics: The counts, for the confusion matrices.
        name: What tells this measurement from others of the same run, such as "val" or "val-top_down".
        own_data: Whether it was measured on the data set of the run's config.
        checkpoint: The checkpoint, with the run's config.
        measurement: What a report shows of it, see `measurement`. Only the main process has it.
    """

    document: dict[str, Any]
    metrics: Metrics
    name: str
    own_data: bool
    checkpoint: Checkpoint
    measurement: dict[str, Any] | None = None


def evaluate_checkpoint(
    folder: Path,
    *,
    split: str = "val",
    mode: str = DEFAULT_DECODING.mode,
    confidence: float | None = None,
    background: str | None = None,
    device: str | None = None,
    batch_size: int | None = None,
    config: Path | None = None,
    overrides: Sequence[str] = (),
    folders: SplitConfig | None = None,
    notify: Notify = ignore_events,
) -> CheckpointEvaluation:
    """Measure a checkpoint on a split of its data set, or on other data.

    The precision is the run's, if the device supports it. With several processes, each measures a share of the images,
    and all return the metrics of the whole split.

    Args:
        folder: The checkpoint folder.
        split: train, val or test.
        mode: A decoding, one of `decode_modes.MODES`.
        confidence: Back off to a coarser class below this score, in 0..1. Default: never.
        background: A class that a second mean IoU leaves out.
        device: auto, cpu, cuda, cuda:N or mps. Default: the run's.
        batch_size: Images computed together, on each process; fewer where memory runs out. Default: the run's
            `training.val_batch_size`; for "auto" its `training.batch_size` on a GPU, and 1 on the CPU.
        config: The YAML file of a config whose data set to use instead of the run's; it has the same class tree.
        overrides: Strings "section.key=value" that change the run's config; the keys are those of `EVAL_KEYS`.
        folders: Measure on these images and masks instead of a split. The masks hold the values of `classes.labels`.
        notify: Receives the events "validating", and a warning where `folders` have other mask values than the sources
            of the run's data set.

    Returns:
        The document and the counts.

    Raises:
        UsageError: When there is no such split, decoding, threshold or class, or a key can't be changed.
        DataError: When images or masks are missing or don't fit the classes.
        CheckpointError: When the checkpoint is damaged or can't be used.
        DeviceError: When this machine has no such device.
    """
    check_decoding(mode, confidence)
    trained = read_checkpoint(folder)
    checkpoint = with_other_data(trained, config=config, overrides=overrides, keys=EVAL_KEYS)
    before, after = trained.config, checkpoint.config
    own_data = folders is None and (before.dataset, before.classes) == (after.dataset, after.classes)
    dataset = checkpoint.config.dataset
    if folders is None:
        _check_options(dataset, overrides)
        try:
            samples = split_samples(dataset, split)
        except DataError as error:
            hint = "\nIf the data has moved, use seghiero eval --set dataset.root=FOLDER." if own_data else ""
            raise DataError(f"{error}{hint}") from None
    else:
        suffixes = {key: value for key, value in dataset.model_extra.items() if key in ("image_suffix", "mask_suffix")}
        samples, split = find_samples(folders, key="dataset.val", bands=dataset.bands, **suffixes), ""
    training = checkpoint.config.training
    device = check_device(device or training.device)
    # Only fp16 is missing on some devices; with the run's precision the metrics equal those of its own validation.
    precision = "auto" if training.precision == "fp16" and device == "cpu" else training.precision
    accelerator = make_accelerator(device, precision)
    _, hierarchy, scores, model = load_trained(checkpoint, accelerator.device)
    if background is not None and background not in hierarchy.nodes:
        raise UsageError(f"--background: unknown class '{background}'.{nearest(background, hierarchy.nodes)}")
    limit = MemoryLimit(batch_size or _batch_size(training, accelerator.device))
    loader = eval_loader(
        samples,
        hierarchy,
        batch_size=limit.images,
        workers=training.workers,
        device_type=accelerator.device.type,
        processes=accelerator.num_processes,
    )
    accelerator.even_batches = False  # otherwise the last images are counted twice
    if not accelerator.is_main_process:
        notify = ignore_events
    if folders is not None and after.dataset.sources:
        notify({"event": "warning", "text": "these masks are read by classes.labels, not by the labels of a source."})
    collector = ImageCollector(hierarchy, len(samples), dataset.bands)
    evaluation = evaluate(
        model,
        report_batches(accelerator.prepare(loader), checkpoint.step, notify),
        hierarchy,
        accelerator=accelerator,
        scores=scores,
        decoding=Decoding(mode, confidence),
        background=background,
        sources=[sample.source for sample in samples],
        limit=limit,
        collector=collector,
    )
    metrics = evaluation.metrics
    (in_tiles,) = any_process(accelerator, limit.tile is not None)
    accelerator.end_training()
    document = summary(metrics) | {
        "checkpoint": str(checkpoint.folder),
        "step": checkpoint.step,
        "split": split or None,
        **measured_data(samples, dataset, split, folders),
        "decode": mode,
        "precision": "fp32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision,
    }
    for number, level in enumerate(document["levels"]):
        level["worst_confusions"] = metrics.worst_confusions(number)
    for name, measured in source_summaries(evaluation, dataset).items():
        document["sources"][name] |= measured
    document["back_off_curve"] = metrics.back_off_curve()
    document["back_off_area"] = metrics.back_off_area()
    if in_tiles:
        document["in_tiles"] = True
    if confidence is not None:
        document["confidence"] = confidence
    if background is not None:
        document["background"] = background
    parts = [split or "images"]
    if mode != DEFAULT_DECODING.mode:
        parts.append(mode)
    if confidence is not None:
        parts.append(f"confidence{confidence!r}")
    if background is not None:
        parts.append(f"background-{quote(background, safe=' ')}")
    if training.precision != trained.config.training.precision:
        parts.append(training.precision)
    shown = None
    if accelerator.is_main_process:
        shown = measurement(document, metrics, collector, samples, dataset, folders)
        shown["weights"] = weights_digest(folder)
    return CheckpointEvaluation(document, metrics, "-".join(parts), own_data, trained, shown)


def _check_options(dataset: DatasetConfig, overrides: Sequence[str]) -> None:
    """Raise UsageError where a new option changes nothing, because each source has its own."""
    names = [override.partition("=")[0] for override in overrides]
    if not dataset.sources or "dataset.sources" in names:
        return
    options = {option for source in dataset.sources for option in READERS.get(source.type).options}
    for name in names:
        if (key := name.removeprefix("dataset.")) in options:
            raise UsageError(f"--set {name}: each of dataset.sources has its own; set dataset.sources.N.{key}.")


def _batch_size(training: TrainingConfig, device: torch.device) -> int:
    """Images to start with. Only a GPU says when memory runs out, so that fewer can be tried."""
    if training.val_batch_size != "auto":
        return training.val_batch_size
    return 1 if device.type == "cpu" else training.batch_size
