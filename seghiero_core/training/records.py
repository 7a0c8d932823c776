"""metrics.jsonl: one JSON document per line for every step and validation of a run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from seghiero_core.atomic import replacing, sync
from seghiero_core.events import Notify
from seghiero_core.training.run import Run
from seghiero_core.training.trackers import track

_FILE = "metrics.jsonl"


def write_record(run: Run, folder: Path, record: dict[str, Any], notify: Notify) -> None:
    """Append a record to the file, and hand it to the trackers and to `notify`.

    Args:
        run: The run; only its main process writes.
        folder: The run folder.
        record: A "step" or "validation" event.
        notify: Receives the record.
    """
    if run.accelerator.is_main_process:
        with (folder / _FILE).open("a") as file:
            file.write(json.dumps(_without_nan(record)) + "\n")
    track(run.accelerator, record)
    notify(record)


def cut_records(folder: Path, step: int, *, validated: bool) -> None:
    """Remove the records that training is going to write again, and lines that a killed process left incomplete.

    Args:
        folder: The run folder; the file need not exist.
        step: The step that training continues from; 0 removes all records.
        validated: Whether the validation after this step is done.
    """
    path = folder / _FILE
    if not path.exists():
        return
    with replacing(path) as temporary, path.open(errors="replace") as old, temporary.open("w") as new:
        new.writelines(line.rstrip("\n") + "\n" for line in old if _is_kept(line, step, validated))
        new.flush()
        sync(temporary)


def last_record(folder: Path) -> dict[str, Any]:
    """Read the last record.

    Args:
        folder: The run folder.

    Returns:
        The record, or an empty dict before the first one.
    """
    path = folder / _FILE
    lines = path.read_text().splitlines() if path.exists() else []
    return json.loads(lines[-1]) if lines else {}


def _is_kept(line: str, step: int, validated: bool) -> bool:
    try:
        record = json.loads(line)
        done = record["step"]
        return done < step or (done == step > 0 and (validated or record["event"] == "step"))
    except (ValueError, KeyError, TypeError):
        return False


def _without_nan(value: Any) -> Any:
    """Replace numbers that are not finite, which JSON doesn't have, by None."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
