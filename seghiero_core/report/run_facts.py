"""What a run folder says about a run: how far it came, its curves, and what it needs to be repeated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from seghiero_core.config.schema import Config
from seghiero_core.data.samples import evenly_spaced
from seghiero_core.errors import shorten

_MOST_POINTS = 500
"""Steps that the curves show."""


def run_status(run: Path | None, config: Config) -> str:
    """Tell whether a run is over.

    Args:
        run: The run folder; None for a checkpoint that was copied out of its run.
        config: The config of the run.

    Returns:
        "training", "interrupted", "finished" or "copied checkpoint".
    """
    if run is None:
        return "copied checkpoint"
    if _is_locked(run):
        return "training"
    return "finished" if _is_finished(run, config) else "interrupted"


def run_curves(run: Path | None) -> dict[str, Any]:
    """Read the curves of a run from its metrics.jsonl.

    Args:
        run: The run folder, or None.

    Returns:
        "steps", evenly spaced ones of a long run, each with "step", "loss", "lr", "images_per_second" and "terms"; and
        "validations" with "step", "epoch", "miou" of each level and "best".
    """
    records = _records(run / "metrics.jsonl") if run is not None else []
    steps = [record for record in records if record["event"] == "step"]
    shown = evenly_spaced(steps[:-1], _MOST_POINTS - 1) + steps[-1:]  # the last one in any case
    return {
        "steps": [
            {
                **{key: record[key] for key in ("step", "loss", "lr", "terms")},
                "images_per_second": record["images"] / record["seconds"] if record["seconds"] else None,
            }
            for record in shown
        ],
        "validations": [
            {
                **{key: record[key] for key in ("step", "epoch", "best")},
                "miou": [level["miou"] for level in record["metrics"]["levels"]],
            }
            for record in records
            if record["event"] == "validation"
        ],
    }


def run_origin(run: Path | None) -> dict[str, Any]:
    """Read what a run was started with.

    Args:
        run: The run folder, or None.

    Returns:
        "command" (None if unknown), "environment" (text by name), "data" (pairs of a fact and its value) and "weights"
        (what was loaded to start from, None if nothing).
    """
    found = (_json(run / "environment.json") if run is not None else None) or {}
    return {
        "command": found.get("command"),
        "environment": found.get("environment", {}),
        "data": [pair for part in found.get("data", []) for pair in _data_facts(part)],
        "weights": _json(run / "weights.json") if run is not None else None,
    }


def _data_facts(part: dict[str, Any]) -> list[list[str]]:
    """The facts of a split or of one of its sources, as pairs of names and text."""
    title = part["split"] if part["source"] is None else f"{part['split']}, {part['source']}"
    sizes = sorted(part["sizes"].items(), key=lambda pair: -pair[1])
    names = {"images": "folder of images", "masks": "folder of masks"}
    facts = {
        **{names.get(key, key): str(value) for key, value in part["folders"].items()},
        "images": f"{part['images']:,}",
        "sizes (height x width, px)": shorten([f"{size}: {count}" for size, count in sizes], 5),
        "labeled pixels": f"{part['labeled']:,}",
        "ignored pixels": f"{part['ignored']:,}",
    }
    if part["counted"] < part["images"]:
        facts["images whose pixels were counted"] = f"{part['counted']:,}"
    return [[f"{title}: {name}", value] for name, value in facts.items()]


def _is_finished(run: Path, config: Config) -> bool:
    """Whether the last checkpoint is validated, and after the last epoch or the one that stopped the run early."""
    progress = _json(run / "last" / "training.json")
    if not progress or not (run / "last" / "metrics.json").exists():
        return False
    training = config.training
    if progress["step"] >= training.epochs * progress["steps_per_epoch"]:
        return True
    is_best = [validation["best"] for validation in run_curves(run)["validations"]]
    patience = training.early_stopping
    return patience is not None and True in is_best and is_best[::-1].index(True) >= patience


def _is_locked(run: Path) -> bool:
    """Whether a process trains into a run folder; see `lock_run_folder`."""
    path = run.with_name(f".{run.name}.lock")
    if not path.exists():
        return False
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        return True
    lock.release()
    return False


def _records(path: Path) -> list[dict[str, Any]]:
    """The records of a file; a line that is being written, or that a kill left unfinished, is passed over."""
    records = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def _json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None
