"""Devices, precisions, memory and processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import nn

from seghiero_core.errors import DeviceError


def make_accelerator(
    device: str,
    precision: str,
    *,
    trackers: Sequence[str] = (),
    folder: Path | None = None,
) -> Accelerator:
    """Start accelerate on a device.

    Args:
        device: auto, cpu, cuda, cuda:N or mps.
        precision: auto, fp32, bf16 or fp16.
        trackers: Names of the experiment trackers to start.
        folder: The run folder, which trackers write to.

    Returns:
        The accelerator.

    Raises:
        DeviceError: When this machine has no such device, several processes would share one GPU, or the device doesn't
            support the precision.
    """
    device = check_device(device)
    processes = _launched_processes()
    if ":" in device and processes > 1:
        raise DeviceError(
            f"device {device} would be shared by {processes} processes; use cuda, and choose the GPUs with "
            "CUDA_VISIBLE_DEVICES."
        )
    # accelerate keeps these for the whole process: without a reset, a second run would get the first one's settings
    AcceleratorState._reset_state(reset_partial_state=processes == 1)
    GradientState._reset_state()
    precision = pick_precision(precision, device.partition(":")[0])
    with _environment("ACCELERATE_TORCH_DEVICE", device if ":" in device else None):
        return Accelerator(
            cpu=device == "cpu",
            mixed_precision="no" if precision == "fp32" else precision,
            step_scheduler_with_optimizer=False,
            log_with=list(trackers) or None,
            project_dir=folder,
        )


def _launched_processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def _environment(name: str, value: str | None) -> Iterator[None]:
    """Set an environment variable, or remove it for None, and restore it afterwards."""
    before = os.environ.pop(name, None)
    if value is not None:
        os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before


def check_device(name: str) -> str:
    """Check that this machine has a device, and choose one for "auto".

    Args:
        name: auto, cpu, cuda, cuda:N or mps.

    Returns:
        `name`; for "auto" cuda, mps or cpu, the first that is available.

    Raises:
        DeviceError: When the name is unknown or this machine has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (number and not (kind == "cuda" and number.isdigit())):
        raise DeviceError(f"unknown device '{name}'; use auto, cpu, cuda, cuda:N or mps.")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("device mps is not available to PyTorch on this machine; use auto or cpu.")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(number or 0) >= count:
            found = "1 CUDA device" if count == 1 else f"{count or 'no'} CUDA devices"
            raise DeviceError(
                f"device {name} is not available: PyTorch finds {found}. "
                "Use auto, or check the driver and that PyTorch was built with CUDA."
            )
    return name


def pick_precision(wanted: str, device: str) -> str:
    """Check a precision, and choose one for "auto".

    Args:
        wanted: auto, fp32, bf16 or fp16.
        device: cpu, cuda or mps.

    Returns:
        `wanted`; for "auto" bf16 if the hardware multiplies bf16 natively, otherwise fp32.

    Raises:
        DeviceError: When the device doesn't support the precision.
    """
    if wanted == "auto":
        return "bf16" if _multiplies_bf16(device) else "fp32"
    if wanted == "fp16" and device == "cpu":
        raise DeviceError("training.precision: fp16 needs a GPU; use bf16 or fp32 on the CPU.")
    return wanted


def _multiplies_bf16(device: str) -> bool:
    if device == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    return device == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def peak_memory_mib(device: torch.device) -> float:
    """Return the peak memory use so far.

    Args:
        device: The device that the model is on.

    Returns:
        What PyTorch allocated on a CUDA device; on other devices the resident memory of the process. MiB.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 2**20
    import resource  # doesn't exist on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux KiB
    return peak * unit / 2**20


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that the device or the machine ran out of memory.

    Args:
        error: An error raised by PyTorch or Python.

    Returns:
        True if it does.
    """
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def available_bytes() -> int:
    """Return the memory that this process may still take.

    Returns:
        The machine's free memory, or less if the process's control group (a container's) has a limit. Bytes.
    """
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:  # not Linux, or cgroups v1
        return free
    return free if limit == "max" else max(0, min(free, int(limit) - int(used)))


def check_processes(actual: int, wanted: int | None, *, sharded: bool = False) -> None:
    """Check that a run has as many processes as the launcher and the config asked for.

    `accelerate launch --cpu --num_processes 2` silently starts one process; it shows as a rendezvous address without a
    world size.

    Args:
        actual: The number of processes of this run.
        wanted: `training.processes`; None accepts any number.
        sharded: Whether the run is sharded by FSDP.

    Raises:
        DeviceError: When the numbers differ, or FSDP was requested in version 1 or where the run isn't sharded.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" and not sharded:
        raise DeviceError("accelerate supports FSDP on several GPUs only; launch this run without it.")
    # The first version scales the gradients of each shard by the norm of that shard alone.
    if sharded and os.environ.get("FSDP_VERSION", "1") != "2":
        raise DeviceError(
            "FSDP version 1 is not supported; launch with: accelerate launch --use_fsdp --fsdp_version 2, or answer 2 "
            "in accelerate config."
        )
    launched = _launched_processes()
    if "WORLD_SIZE" not in os.environ and {"MASTER_ADDR", "ACCELERATE_MIXED_PRECISION"} <= os.environ.keys():
        raise DeviceError(
            f"accelerate launch was asked for several processes but started {actual}. "
            "On the CPU use: torchrun --nproc-per-node 2 -m seghiero_cli train CFG."
        )
    if actual != launched:
        raise DeviceError(
            f"the launcher asked for {launched} processes, but this run has {actual}. "
            f"Start it with: torchrun --nproc-per-node {launched} -m seghiero_cli train CFG."
        )
    if wanted is not None and actual != wanted:
        raise DeviceError(
            f"training.processes: expected {wanted} processes, but this run has {actual}. "
            f"Start it with: torchrun --nproc-per-node {wanted} -m seghiero_cli train CFG."
        )


def any_process(accelerator: Accelerator, *flags: bool) -> list[bool]:
    """Combine flags over all processes by "or". Every process must call it at the same point.

    Args:
        accelerator: The run's accelerator.
        *flags: This process's flags.

    Returns:
        For each flag, whether it is set in at least one process.
    """
    if accelerator.num_processes == 1:
        return list(flags)
    counts = torch.tensor(flags, dtype=torch.int64, device=accelerator.device)
    return [count > 0 for count in accelerator.reduce(counts, "sum").tolist()]


def broadcast_buffers(accelerator: Accelerator, model: nn.Module) -> None:
    """Give every process the buffers of the main process, whose weights are saved; every process must call it.

    Each process updates BatchNorm's running mean and variance from its own batches.

    Args:
        accelerator: The run's accelerator.
        model: A model with equal parameters in every process.
    """
    for buffer in model.buffers() if accelerator.num_processes > 1 else ():
        torch.distributed.broadcast(buffer, src=0)


def sum_over_processes(accelerator: Accelerator, values: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Add up values over all processes. Every process must call it at the same point.

    Args:
        accelerator: The run's accelerator.
        values: This process's values by name, scalar tensors.

    Returns:
        The sums, by name.
    """
    stacked = torch.stack([value.detach().float() for value in values.values()])
    if accelerator.num_processes > 1:
        stacked = accelerator.reduce(stacked, "sum")
    return dict(zip(values, stacked.tolist(), strict=True))


def is_lost_peer(error: BaseException) -> bool:
    """Tell whether a collective operation failed because another process of the run is gone.

    Args:
        error: What the operation raised.

    Returns:
        True if it did.
    """
    words = ("connection closed by peer", "connection reset by peer", "socket closed", "connection refused")
    return isinstance(error, RuntimeError) and (
        type(error).__name__ == "DistBackendError" or any(word in str(error).lower() for word in words)
    )
