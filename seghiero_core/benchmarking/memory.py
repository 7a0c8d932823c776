"""Peak memory: exact for what PyTorch allocates, and as the operating system sees a whole process."""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path

import psutil
import torch

from seghiero_core.benchmarking.timing import Call
from seghiero_core.devices import peak_memory_mib

RESIDENT_MEANING = "how far the process's resident memory rose above that before the first step, at its peak"
CUDA_MEANING = "peak of what PyTorch allocated on the device, weights included"


def peak_allocated(run: Call, device: torch.device) -> int:
    """Measure the peak of the memory that a function allocates through PyTorch beyond what was held before.

    It is the same in every run, whatever else the machine does. Call the function once before, so that what it keeps
    from call to call exists. On the CPU, memory that was allocated before and is freed by the function doesn't count.

    Args:
        run: The function.
        device: The device that it computes on: the CPU or a CUDA device.

    Returns:
        Bytes.
    """
    gc.collect()  # else garbage of before may be freed in between
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    changes = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        held += change.nbytes()
        peak = max(peak, held)
    return peak


class MemoryMeter:
    """Measures the peak memory of what happens after it was created.

    On a CUDA device that is PyTorch's peak, weights included. Elsewhere it is the peak resident memory of the process
    above that at the creation. Only Linux can forget an earlier, higher peak, so on other systems measure what takes
    the least memory first, and everything in a new process.

    Args:
        device: The device that computes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            self._before = 0.0
        else:
            _return_freed_memory()
            if sys.platform == "linux":
                Path("/proc/self/clear_refs").write_text("5")  # sets the peak to the present value, see proc(5)
            self._before = psutil.Process().memory_info().rss / 2**20

    def peak_mib(self) -> float:
        """Return the peak so far.

        Returns:
            MiB.
        """
        if self.device.type != "cuda" and sys.platform == "linux":
            return max(0.0, _linux_peak_mib() - self._before)
        return max(0.0, peak_memory_mib(self.device) - self._before)

    @property
    def meaning(self) -> str:
        """What `peak_mib` returns, for reports."""
        return CUDA_MEANING if self.device.type == "cuda" else RESIDENT_MEANING


def _linux_peak_mib() -> float:
    """The peak since it was last set. `getrusage` would also count the memory of the process that started this one."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**10


def _return_freed_memory() -> None:
    """Give freed memory back to the system where the C library is glibc, which keeps some of it."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)
