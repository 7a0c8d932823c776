"""Experiment trackers, through the interface of accelerate. Each needs an extra of this package."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from accelerate import Accelerator

from seghiero_core.config.schema import Config
from seghiero_core.errors import UsageError
from seghiero_core.run_files import record_file

TRACKER_FOLDER = "seghiero"
"""The name of the project, and so of the folder in the run that file-based trackers write to."""


def check_trackers(names: Sequence[str]) -> None:
    """Check that the packages of trackers are installed; each package has the name of its tracker.

    Args:
        names: The trackers of the config.

    Raises:
        UsageError: When one is missing.
    """
    for name in names:
        if find_spec(name) is None:
            raise UsageError(
                f"training.trackers: {name} isn't installed; install it with `pip install 'seghiero[{name}]'`."
            )


def start_trackers(accelerator: Accelerator, config: Config) -> None:
    """Start the trackers of a config and log the whole config, one value per key. Only the main process logs.

    Args:
        accelerator: The one that was created with these trackers.
        config: The config of the run.
    """
    name = config.output.name
    named = {"wandb": {"name": name}, "mlflow": {"run_name": name}, "trackio": {"name": name}}
    folder = config.run_dir / TRACKER_FOLDER
    before = set(folder.rglob("*"))
    accelerator.init_trackers(TRACKER_FOLDER, _flat(config.model_dump(mode="json")), named)
    for path in sorted(set(folder.rglob("*")) - before):
        if accelerator.is_main_process and path.is_file():
            record_file(config.run_dir, path, changes=True)


def track(accelerator: Accelerator, record: dict[str, Any]) -> None:
    """Log the numbers of a record.

    Args:
        accelerator: The one whose trackers were started.
        record: A "step" or "validation" event.
    """
    if not accelerator.trackers:
        return
    if record["event"] == "step":
        values = {f"train/{key}": record[key] for key in ("loss", "lr", "grad_norm", "seconds", "memory_mib")}
        values |= {f"train/{name}": value for name, value in record["terms"].items()}
    else:
        values = _validation_values("val", record["metrics"])
        for name, metrics in record.get("sources", {}).items():
            values |= _validation_values(f"val/{name}", metrics)
    accelerator.log({key: value for key, value in values.items() if value is not None}, step=record["step"])


def _validation_values(prefix: str, metrics: dict[str, Any]) -> dict[str, float | None]:
    names = ("mean_miou", "consistency", "full_path_accuracy", "mean_tree_distance")
    values = {f"{prefix}/{name}": metrics[name] for name in names}
    return values | {f"{prefix}/{level['name']}_miou": level["miou"] for level in metrics["levels"]}


def _flat(values: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Flatten nested sections to keys such as "training.lr"."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{before}{key}.")
        else:
            flat[f"{before}{key}"] = value if isinstance(value, int | float | str) else str(value)
    return flat
