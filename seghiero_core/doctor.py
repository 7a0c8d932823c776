"""Looking over the machine: what `seghiero` needs, whether it is there, and what to do where it isn't."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.constants import HF_HUB_CACHE

from seghiero_core.config.loading import load_config
from seghiero_core.config.schema import Config
from seghiero_core.data.loaders import Augment, batches, num_workers, train_loader
from seghiero_core.data.samples import split_samples
from seghiero_core.devices import available_bytes, check_device, pick_precision
from seghiero_core.errors import SeghieroError
from seghiero_core.scaffold.starter import write_starter
from seghiero_core.version import __version__

PACKAGES = ("torch", "torchvision", "timm", "transformers", "accelerate", "safetensors", "onnxruntime")
LEAST_MEMORY_GIB, LEAST_DISK_GIB, LEAST_SHM_MIB = 2, 2, 256


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what was found, and what to do where that isn't good (None: it is)."""

    name: str
    found: str
    advice: str | None = None


def examine(config: Path | None = None) -> Iterator[Finding]:
    """Look at versions, devices, memory, caches, write access and the loader's throughput, one finding at a time.

    With the path of a `config` its data, device and output folder are looked at, else a small synthetic set, the
    device that `auto` gives and the current folder. Raises nothing for what is wrong: that is a finding.
    """
    yield from _versions()
    if config is None:
        with tempfile.TemporaryDirectory() as folder:
            loaded = load_config(write_starter(Path(folder) / "starter"))
            yield from _looked_over(loaded, Path("runs").absolute())
        return
    try:
        loaded = load_config(config)
    except SeghieroError as error:
        yield Finding("config", str(config), str(error))
        return
    yield Finding("config", str(config))
    yield from _looked_over(loaded, loaded.output.dir)


def _looked_over(config: Config, output: Path) -> Iterator[Finding]:
    yield from _devices(config)
    yield from _memory()
    yield _writable("output folder", output, "set output.dir to a folder that you may write to.")
    cache = Path(HF_HUB_CACHE)
    yield _writable("weights cache", cache, "set HF_HOME to a folder that you may write to, or download elsewhere.")
    yield _throughput(config)


def _versions() -> Iterator[Finding]:
    yield Finding("seghiero", f"{__version__}, Python {platform.python_version()} on {platform.platform()}")
    for package in PACKAGES:
        names = (package, f"{package}-gpu")  # onnxruntime comes under two names
        found = [_version(name) for name in names if _version(name)]
        advice = None if found else f"pip install {package}, or install seghiero again."
        yield Finding(package, found[0] if found else "not installed", advice)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices(config: Config) -> Iterator[Finding]:
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(number)
        advice = None if free > total / 2 else "another process uses this GPU; end it, or choose another (cuda:N)."
        name = torch.cuda.get_device_name(number)
        yield Finding(f"cuda:{number}", f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free", advice)
    try:
        device = check_device(config.training.device)
        precision = pick_precision(config.training.precision, device.partition(":")[0])
    except SeghieroError as error:
        yield Finding("device", config.training.device, str(error))
        return
    if device == "cpu" and Path("/dev/nvidiactl").exists() and config.training.device != "cpu":
        advice = "this machine has an NVIDIA GPU and PyTorch doesn't see it: install PyTorch's CUDA build."
        yield Finding("device", device, advice)
    else:
        yield Finding("device", f"{device} in {precision}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads")


def _memory() -> Iterator[Finding]:
    free = available_bytes() / 2**30
    advice = None if free >= LEAST_MEMORY_GIB else "close other programs, or use a smaller training.batch_size."
    yield Finding("memory", f"{free:.1f} GiB free", advice)
    shared = Path("/dev/shm")
    if shared.exists():
        mib = shutil.disk_usage(shared).free / 2**20
        advice = (
            None
            if mib >= LEAST_SHM_MIB
            else "workers hand over batches in it: docker run --shm-size=2g, or workers: 0."
        )
        yield Finding("shared memory", f"{mib:.0f} MiB free", advice)


def _writable(name: str, folder: Path, advice: str) -> Finding:
    there = folder
    while not there.exists():
        there = there.parent
    try:
        with tempfile.NamedTemporaryFile(dir=there) as file:
            file.write(b"seghiero")
    except OSError as error:
        return Finding(name, f"{folder}: {error.strerror}", advice)
    free = shutil.disk_usage(there).free / 2**30
    short = f"a run's checkpoints need about {LEAST_DISK_GIB} GiB; free some space."
    return Finding(name, f"{folder}, {free:.1f} GiB free", None if free >= LEAST_DISK_GIB else short)


def _throughput(config: Config, images: int = 32) -> Finding:
    """Images per second out of the training loader, decoded and augmented, from its second batch on."""
    try:
        samples = split_samples(config.dataset, "train")
        device = check_device(config.training.device).partition(":")[0]
        augment = Augment(**config.transform.model_dump(), seed=0)
        hierarchy = config.hierarchy
        workers = num_workers(config.training.workers, device)
        batch_size = max(1, min(4, len(samples) // 2))
        chosen = [samples[i % len(samples)] for i in range(images)]
        loading = batches(train_loader(chosen, hierarchy, augment, batch_size=batch_size, workers=workers))
        next(loading)
        started = time.perf_counter()
        count = sum(len(batch["image"]) for batch in loading)
        rate = count / (time.perf_counter() - started)
    except SeghieroError as error:
        return Finding("loader", "no batch", str(error))
    height, width = config.transform.size
    found = f"{rate:.1f} images/s of {height}x{width} px with {workers} workers"
    slow = device == "cuda" and rate < 20
    return Finding("loader", found, "slower than most GPUs train: set training.workers higher." if slow else None)
