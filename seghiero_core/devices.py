"""The device, the precision, the memory and the processes of a run."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

from seghiero_core.errors import DeviceError


def make_accelerator(
    device: str,
    precision: str,
    *,
    accumulation: int = 1,
    trackers: Sequence[str] = (),
    folder: Path | None = None,
) -> Accelerator:
    """Start accelerate on a device.

    Args:
        device: auto, cpu, cuda, cuda:N or mps.
        precision: auto, fp32, bf16 or fp16.
        accumulation: Batches per optimizer step.
        trackers: Names of the trackers that may be started.
        folder: Where trackers write: the run's folder.

    Returns:
        The accelerator.

    Raises:
        DeviceError: This machine has no such device, or the device has no such precision.
    """
    device = check_device(device)
    # accelerate keeps these for the whole process; a second run in it would be held to the first one's settings
    AcceleratorState._reset_state(reset_partial_state=int(os.environ.get("WORLD_SIZE", "1")) == 1)
    GradientState._reset_state()
    if ":" in device:
        os.environ["ACCELERATE_TORCH_DEVICE"] = device
    precision = pick_precision(precision, device.partition(":")[0])
    return Accelerator(
        cpu=device == "cpu",
        mixed_precision="no" if precision == "fp32" else precision,
        gradient_accumulation_steps=accumulation,
        step_scheduler_with_optimizer=False,
        log_with=list(trackers) or None,
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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is that of PyTorch or Python for a device or a host whose memory is used up."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def available_bytes() -> int:
    """Bytes of memory that this process may still take: the machine's, or less where its control group has a limit."""
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:  # another system, or the older layout: nothing to be learnt from
        return free
    return free if limit == "max" else max(0, min(free, int(limit) - int(used)))


def check_processes(actual: int, wanted: int | None, *, sharded: bool = False) -> None:
    """Raise DeviceError where the launcher or `training.processes` (`wanted`) asked for other processes, or for shards.

    `accelerate launch --cpu --num_processes 2` starts one process without a word; what gives it away is a
    rendezvous address without a world size.
    """
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and not sharded:
        raise DeviceError("FSDP was asked for, and accelerate shards over several GPUs only; leave it out here.")
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if "WORLD_SIZE" not in os.environ and {"MASTER_ADDR", "ACCELERATE_MIXED_PRECISION"} <= os.environ.keys():
        raise DeviceError(
            f"accelerate launch was asked for several processes and started {actual}. "
            "On the CPU use: torchrun --nproc-per-node 2 -m seghiero_cli train CFG."
        )
    if actual != launched:
        raise DeviceError(
            f"the launcher asked for {launched} processes, and this is a run of {actual}. "
            f"Start it with: torchrun --nproc-per-node {launched} -m seghiero_cli train CFG."
        )
    if wanted is not None and actual != wanted:
        raise DeviceError(
            f"training.processes: {wanted} were asked for, and this is a run of {actual}. "
            f"Start it with: torchrun --nproc-per-node {wanted} -m seghiero_cli train CFG."
        )


def any_process(accelerator: Accelerator, *flags: bool) -> list[bool]:
    """Each flag, true where it is true in at least one process; every process must call it at the same place."""
    if accelerator.num_processes == 1:
        return list(flags)
    counts = torch.tensor(flags, dtype=torch.int64, device=accelerator.device)
    return [count > 0 for count in accelerator.reduce(counts, "sum").tolist()]


def mean_over_processes(accelerator: Accelerator, values: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Each value (a scalar tensor), averaged over the processes; every process must call it at the same place."""
    stacked = torch.stack([value.detach().float() for value in values.values()])
    if accelerator.num_processes > 1:
        stacked = accelerator.reduce(stacked, "mean")
    return dict(zip(values, stacked.tolist(), strict=True))


def is_lost_peer(error: BaseException) -> bool:
    """Whether a collective failed because another process of the run is gone."""
    words = ("connection closed by peer", "connection reset by peer", "socket closed", "connection refused")
    return isinstance(error, RuntimeError) and (
        type(error).__name__ == "DistBackendError" or any(word in str(error).lower() for word in words)
    )
