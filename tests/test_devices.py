"""Devices: the names that a user may give, and memory on each operating system."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace
from unittest.mock import Mock

import psutil
import pytest
import torch

from seghiero_core import devices
from seghiero_core.errors import DeviceError


@pytest.mark.parametrize("name", ["tpu", "cpu:1", "cuda:x", "mps:0", ""])
def test_an_unknown_device_names_the_known_ones(name):
    with pytest.raises(DeviceError, match=rf"unknown device '{name}'; use auto, cpu, cuda, cuda:N or mps"):
        devices.check_device(name)


@pytest.mark.parametrize(("count", "found"), [(0, "no CUDA devices"), (1, "1 CUDA device"), (2, "2 CUDA devices")])
def test_a_missing_gpu_is_an_error_that_counts_the_others(count, found, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(DeviceError, match=rf"device cuda:2 is not available: PyTorch finds {found}\."):
        devices.check_device("cuda:2")
    if count:
        assert devices.check_device(f"cuda:{count - 1}") == f"cuda:{count - 1}"


def test_peak_memory_counts_what_this_process_allocates():
    cpu = torch.device("cpu")
    before = devices.peak_memory_mib(cpu)
    assert before >= 0.9 * psutil.Process().memory_info().rss / 2**20
    block = torch.ones(int(before + 64) * 2**18)  # more MiB of float32 than were ever in use
    assert devices.peak_memory_mib(cpu) > before
    assert block.nbytes <= devices.peak_memory_mib(cpu) * 2**20


@pytest.mark.parametrize(("platform", "expected"), [("win32", 3.0), ("darwin", 2.0), ("linux", 2048.0)])
def test_peak_memory_on_each_system_is_in_mib(platform, expected, monkeypatch):
    usage = SimpleNamespace(getrusage=lambda who: SimpleNamespace(ru_maxrss=2 * 2**20), RUSAGE_SELF=0)
    monkeypatch.setitem(sys.modules, "resource", None if platform == "win32" else usage)
    monkeypatch.setattr(sys, "platform", platform)
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=3 * 2**20))
    monkeypatch.setattr(psutil, "Process", lambda: process)
    assert devices.peak_memory_mib(torch.device("cpu")) == expected


def test_evaluation_and_prediction_import_nothing_that_windows_lacks():
    libraries = "accelerate, huggingface_hub, onnxruntime, PIL.Image, psutil, timm, torchvision, transformers"
    missing = "import sys; sys.modules |= dict.fromkeys(['resource', 'fcntl', 'termios', 'pwd', 'grp'])"
    own = "seghiero_core.doctor, seghiero_core.evaluation.checkpoint, seghiero_core.predict.loading"
    code = f"import {libraries}\n{missing}\nimport {own}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def two_gpus(monkeypatch):
    """Two GPUs, as far as PyTorch's counting goes; `Accelerator` returns the device that it would take."""

    def start(*, cpu, **_):
        chosen = os.environ.get("ACCELERATE_TORCH_DEVICE")
        return SimpleNamespace(device=torch.device(chosen or ("cpu" if cpu else "cuda")))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(devices, "Accelerator", start)
    monkeypatch.delenv("ACCELERATE_TORCH_DEVICE", raising=False)


@pytest.mark.parametrize("before", [None, "cuda:0"])
def test_a_run_on_one_gpu_leaves_no_trace_in_the_next(two_gpus, before, monkeypatch):
    if before:
        monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", before)
    wanted = ["cuda:1", "cpu", "cuda"]
    assert [str(devices.make_accelerator(name, "fp32").device) for name in wanted] == wanted
    assert os.environ.get("ACCELERATE_TORCH_DEVICE") == before
    monkeypatch.setattr(devices, "Accelerator", Mock(side_effect=RuntimeError("no driver")))
    with pytest.raises(RuntimeError, match="no driver"):
        devices.make_accelerator("cuda:1", "fp32")
    assert os.environ.get("ACCELERATE_TORCH_DEVICE") == before


def test_several_processes_do_not_share_one_gpu(two_gpus, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(DeviceError, match="device cuda:1 would be shared by 2 processes; use cuda, and choose the"):
        devices.make_accelerator("cuda:1", "fp32")
    assert str(devices.make_accelerator("cuda", "fp32").device) == "cuda"


def test_fsdp_needs_its_second_version(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for version in ("1", None):  # 1 is accelerate's default
        if version:
            monkeypatch.setenv("FSDP_VERSION", version)
        else:
            monkeypatch.delenv("FSDP_VERSION")
        with pytest.raises(DeviceError, match="FSDP version 1 is not supported; .* --use_fsdp --fsdp_version 2"):
            devices.check_processes(2, None, sharded=True)
    monkeypatch.setenv("FSDP_VERSION", "2")
    devices.check_processes(2, None, sharded=True)
