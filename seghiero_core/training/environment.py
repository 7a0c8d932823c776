"""environment.json: what a run needs to be repeated, beyond its config."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from seghiero_core.config.schema import DatasetConfig
from seghiero_core.data.audit import Audit
from seghiero_core.training.run import Run
from seghiero_core.version import __version__

_PACKAGES = ("torch", "torchvision", "timm", "transformers", "accelerate", "numpy", "pillow")


def write_environment(run: Run, folder: Path, command: str | None) -> None:
    """Write the versions, the machine, the command and facts of the data into a run; those of its last start count.

    Args:
        run: The run.
        folder: The run folder.
        command: The command line that started the run, if there was one.
    """
    device = run.accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    environment = {
        "seghiero": __version__,
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in _PACKAGES},
        "system": platform.platform(),
        "device": f"{device.type} ({name})",
        **({"cuda": str(torch.version.cuda)} if device.type == "cuda" else {}),
        "precision": run.precision,
        "processes": str(run.accelerator.num_processes),
        "threads": str(torch.get_num_threads()),
    }
    document = {"command": command, "environment": environment, "data": run.data}
    (folder / "environment.json").write_text(json.dumps(document, indent=1))


def data_facts(dataset: DatasetConfig, audits: Mapping[str, Audit]) -> list[dict[str, Any]]:
    """Describe what the check of the data found.

    Args:
        dataset: The config's `dataset` section.
        audits: What was found in each split.

    Returns:
        For each split and each of its sources: "split", "source" (its name, None without sources), "folders" (of images
        and masks), "images", "sizes" (the number of images of each size, height x width in px), "counted" (images whose
        masks were decoded), and the "labeled" and "ignored" pixels of these.
    """
    return [
        {
            "split": split,
            "source": None if source is None else dataset.sources[source].name,
            "folders": getattr(dataset.parts[source or 0], split).model_dump(mode="json"),
            "images": len(part.samples),
            "sizes": {f"{height} x {width}": count for (height, width), count in part.sizes.items()},
            "counted": part.decoded,
            "labeled": int(part.pixels.sum()),
            "ignored": part.ignored,
        }
        for split, found in audits.items()
        for source, part in (found.sources or {None: found}).items()
    ]
