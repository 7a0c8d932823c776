"""What a measurement was made on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import psutil
import torch

from seghiero_core.version import __version__


def describe_machine() -> dict[str, Any]:
    """Describe the machine and the versions that speed depends on.

    Returns:
        "cpu" (its model), "instructions" (those that PyTorch uses, such as "AVX512, AVX512-BF16"), "cores" (that this
        process may use), "memory_gib", "gpus" (their names), "system", and the versions of
        "python", "torch", "cuda" (None without) and "seghiero".
    """
    return {
        "cpu": _cpu_model(),
        "instructions": ", ".join(_instructions()),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "seghiero": __version__,
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _instructions() -> list[str]:
    found = [torch.backends.cpu.get_cpu_capability()]
    if torch.cpu._is_avx512_bf16_supported():
        found.append("AVX512-BF16")
    if torch.cpu._is_amx_tile_supported():
        found.append("AMX")
    return found
