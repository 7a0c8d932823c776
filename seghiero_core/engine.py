"""The device, the precision and the processes of a run, by accelerate."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

from seghiero_core.errors import DeviceError
from seghiero_core.schema import TrainingConfig


def make_accelerator(training: TrainingConfig, folder: Path | None = None) -> Accelerator:
    """The accelerate engine for `training.device` and `training.precision`. Raises DeviceError where it can't be.

    With `folder`, that of a run, the trackers of `training.trackers` can be started.
    """
    device = check_device(training.device)
    # accelerate keeps these for the whole process; a second run in it would be held to the first one's settings
    AcceleratorState._reset_state(reset_partial_state=int(os.environ.get("WORLD_SIZE", "1")) == 1)
    GradientState._reset_state()
    if ":" in device:
        os.environ["ACCELERATE_TORCH_DEVICE"] = device
    precision = pick_precision(training.precision, device.partition(":")[0])
    return Accelerator(
        cpu=device == "cpu",
        mixed_precision="no" if precision == "fp32" else precision,
        gradient_accumulation_steps=training.gradient_accumulation,
        step_scheduler_with_optimizer=False,
        log_with=(training.trackers or None) if folder else None,
        project_dir=folder,
    )


def check_device(name: str) -> str:
    """The device meant by `auto|cpu|cuda|cuda:N|mps`. Raises DeviceError where this machine has none such."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (number and not (kind == "cuda" and number.isdigit())):
        raise DeviceError(f"training.device: '{name}' is no device; use auto, cpu, cuda, cuda:N or mps.")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("training.device: mps was asked for, and PyTorch finds none here; use auto or cpu.")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(number or 0) >= count:
            raise DeviceError(
                f"training.device: {name} was asked for, and PyTorch finds {count or 'no'} CUDA device"
                f"{'' if count == 1 else 's'} here. Use device: auto, or check the driver and PyTorch's CUDA build."
            )
    return name


def pick_precision(wanted: str, device: str) -> str:
    """fp32, bf16 or fp16; `auto` is bf16 where the hardware multiplies in it, else fp32. Raises DeviceError."""
    if wanted == "auto":
        return "bf16" if _multiplies_bf16(device) else "fp32"
    if wanted == "fp16" and device == "cpu":
        raise DeviceError("training.precision: fp16 needs a GPU; on the CPU use bf16 or fp32.")
    return wanted


def _multiplies_bf16(device: str) -> bool:
    if device == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    return device == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory so far, MiB: the GPU's where there is one, else the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # macOS counts bytes, Linux KiB
