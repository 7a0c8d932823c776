"""The files of an evaluation: a JSON document and a confusion matrix per level as CSV; in a run also a report's."""

from __future__ import annotations

import contextlib
import csv
import json
from pathlib import Path
from typing import Any

from seghiero_core.atomic import replacing
from seghiero_core.errors import UsageError
from seghiero_core.evaluation.checkpoint import CheckpointEvaluation
from seghiero_core.evaluation.measurement import weights_digest
from seghiero_core.run_files import record_file
from seghiero_core.runs import checkpoint_in, run_of

_FOLDER = "eval"
"""The folder in a run that holds them."""


def save_evaluation(evaluation: CheckpointEvaluation, folder: Path) -> list[Path]:
    """Write NAME.json and NAME-LEVEL.csv for every level. An evaluation of the same name is replaced.

    A row of a matrix is a true class, a column a predicted class, and a cell the number of pixels. Where predictions
    backed off to a coarser level, the last column counts the undecided ones.

    Args:
        evaluation: What `evaluate_checkpoint` returned.
        folder: Where to write; created if needed.

    Returns:
        The files.

    Raises:
        UsageError: When a file of that name is no result of an evaluation; nothing has been written then.
        DeviceError: When the folder can't be created.
        OSError: When the folder isn't writable or the disk is full.
    """
    levels = evaluation.metrics.hierarchy.levels
    json_file = folder / f"{evaluation.name}.json"
    files = [json_file, *(folder / f"{evaluation.name}-{level.name}.csv" for level in levels)]
    for file in files:
        if file.is_file() and not _is_result(file):
            raise UsageError(f"{file} is not a result of eval, so it isn't replaced; move it away.")
    with replacing(json_file) as partial:
        text = json.dumps(evaluation.document, indent=1, allow_nan=False, ensure_ascii=False)
        partial.write_text(text + "\n", encoding="utf-8")
    backs_off = "confidence" in evaluation.document
    for number, file in enumerate(files[1:]):
        names = evaluation.metrics.hierarchy.level_names(number)
        counts = evaluation.metrics.confusion(number)  # the first column is undecided
        with replacing(file) as partial, partial.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["truth", *names, *(["(undecided)"] if backs_off else [])])
            for name, (undecided, *row) in zip(names, counts.tolist(), strict=True):
                writer.writerow([name, *row, *([undecided] if backs_off else [])])
    return files


def _is_result(file: Path) -> bool:
    """Whether a file looks like what `save_evaluation` writes."""
    with file.open(encoding="utf-8", errors="replace") as stream:
        if file.suffix == ".csv":
            return stream.readline().startswith("truth,")
        try:
            document = json.load(stream)
        except ValueError:
            return False
    return isinstance(document, dict) and document.keys() >= {"checkpoint", "levels"}


def keep_in_run(evaluation: CheckpointEvaluation) -> list[Path]:
    """Write an evaluation, and what a report needs of it, into the folder `eval` of the checkpoint's run.

    The names of other checkpoints than the one that the run stands for (`best`, or else `last`) end in their step.

    Args:
        evaluation: What `evaluate_checkpoint` returned, measured on the run's own data.

    Returns:
        The files that `save_evaluation` writes; none where the checkpoint was copied out of its run.

    Raises:
        UsageError: As for `save_evaluation`.
        DeviceError: When its folder `eval` can't be created.
        OSError: When the run isn't writable or the disk is full.
    """
    checkpoint = Path(evaluation.document["checkpoint"])
    run = run_of(checkpoint)
    if run is None:
        return []
    evaluation = evaluation._replace(name=_name_in_run(evaluation.name, checkpoint, run))
    files = save_evaluation(evaluation, run / _FOLDER)
    for_report = _report_file(run, evaluation.name)
    with replacing(for_report) as partial:
        partial.write_text(json.dumps(evaluation.measurement, allow_nan=False), encoding="utf-8")
    with contextlib.suppress(OSError):  # files that the list doesn't name stay when the run is overwritten
        for file in (*files, for_report):
            record_file(run, file)
    return files


def kept_measurement(checkpoint: Path, split: str = "val") -> dict[str, Any] | None:
    """Read the measurement of a checkpoint that its validation or an evaluation with the usual decoding has kept.

    Args:
        checkpoint: The checkpoint folder.
        split: train, val or test.

    Returns:
        What `measurement` returns, or None if there is none of this split and these weights.
    """
    checkpoint = checkpoint.resolve()
    validation = checkpoint / "report.json"
    if split == "val" and validation.exists():
        return json.loads(validation.read_text())
    run = run_of(checkpoint)
    if run is None or not (file := _report_file(run, _name_in_run(split, checkpoint, run))).exists():
        return None
    found = json.loads(file.read_text())
    return found if found.get("weights") == weights_digest(checkpoint) else None


def _report_file(run: Path, name: str) -> Path:
    return run / _FOLDER / "report" / f"{name}.json"


def _name_in_run(name: str, checkpoint: Path, run: Path) -> str:
    own = checkpoint_in(run)
    return name if own is not None and own.resolve() == checkpoint else f"{name}-{checkpoint.name}"
