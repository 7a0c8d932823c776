"""Checking whether this machine is ready to train, and saying how to fix what isn't."""

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
from seghiero_core.data.loaders import batches, num_workers, train_loader
from seghiero_core.data.samples import evenly_spaced, split_samples
from seghiero_core.devices import available_bytes, check_device, pick_precision
from seghiero_core.errors import SeghieroError
from seghiero_core.scaffold.starter import write_starter
from seghiero_core.version import __version__

PACKAGES = ("torch", "torchvision", "timm", "transformers", "accelerate", "safetensors", "onnxruntime")
MIN_MEMORY_GIB, MIN_DISK_GIB, MIN_SHARED_MIB = 2, 2, 256
MIN_RATE = 20  # images/s, below which loading is likely to be slower than training on a GPU


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: What was checked.
        found: What was found.
        advice: How to fix it; None if all is well.
    """

    name: str
    found: str
    advice: str | None = None


def examine(config: Path | None = None) -> Iterator[Finding]:
    """Check versions, devices, memory, caches, write access and the throughput of the data loader.

    Args:
        config: A config whose data, device and output folder to check. Default: a small synthetic data set, the device
            that "auto" chooses, and ./runs.

    Yields:
        One finding per check. A failed check is a finding with advice, never an error.
    """
    yield from _versions()
    if config is None:
        with tempfile.TemporaryDirectory() as folder:
            loaded = load_config(write_starter(Path(folder) / "starter"))
            yield from _check_run(loaded, Path("runs").absolute())
        return
    try:
        loaded = load_config(config)
    except SeghieroError as error:
        yield Finding("config", str(config), str(error))
        return
    yield Finding("config", str(config))
    yield from _check_run(loaded, loaded.output.dir)


def _check_run(config: Config, output: Path) -> Iterator[Finding]:
    yield from _devices(config)
    yield from _memory()
    yield _writable("output folder", output, "set output.dir to a writable folder.")
    cache = Path(HF_HUB_CACHE)
    yield _writable("weights cache", cache, "set HF_HOME to a writable folder.")
    yield _throughput(config)


def _versions() -> Iterator[Finding]:
    yield Finding("seghiero", f"{__version__}, Python {platform.python_version()} on {platform.platform()}")
    for package in PACKAGES:
        names = (package, f"{package}-gpu")  # onnxruntime has two distributions
        found = next((version for name in names if (version := _version(name))), None)
        advice = None if found else f"pip install {package}, or reinstall seghiero."
        yield Finding(package, found or "not installed", advice)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices(config: Config) -> Iterator[Finding]:
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        found = f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        busy = "another process is using this GPU; stop it, or use another (cuda:N)."
        yield Finding(f"cuda:{number}", found, None if free > total / 2 else busy)
    try:
        device = check_device(config.training.device)
        precision = pick_precision(config.training.precision, device.partition(":")[0])
    except SeghieroError as error:
        yield Finding("device", config.training.device, str(error))
        return
    if device == "cpu" and Path("/dev/nvidiactl").exists() and config.training.device != "cpu":
        advice = "PyTorch doesn't see the NVIDIA GPU of this machine: install PyTorch built with CUDA."
        yield Finding("device", device, advice)
    else:
        threads = torch.get_num_threads()
        counts = f"{os.cpu_count()} CPUs, {threads} thread{'s' if threads > 1 else ''}"
        yield Finding("device", f"{device} in {precision}, {counts}")


def _memory() -> Iterator[Finding]:
    free = available_bytes() / 2**30
    advice = None if free >= MIN_MEMORY_GIB else "close other programs, or use a smaller training.batch_size."
    yield Finding("memory", f"{free:.1f} GiB free", advice)
    shared = Path("/dev/shm")
    if shared.exists():
        mib = shutil.disk_usage(shared).free / 2**20
        more = "workers pass batches through it: docker run --shm-size=2g, or training.workers: 0."
        advice = None if mib >= MIN_SHARED_MIB else more
        yield Finding("shared memory", f"{mib:.0f} MiB free", advice)


def _writable(name: str, folder: Path, advice: str) -> Finding:
    existing = folder
    while not existing.exists():
        existing = existing.parent
    try:
        with tempfile.NamedTemporaryFile(dir=existing) as file:
            file.write(b"seghiero")
    except OSError as error:
        return Finding(name, f"{folder}: {error.strerror}", advice)
    free = shutil.disk_usage(existing).free / 2**30
    more = f"the checkpoints of a run need about {MIN_DISK_GIB} GiB; free some space."
    return Finding(name, f"{folder}, {free:.1f} GiB free", None if free >= MIN_DISK_GIB else more)


def _throughput(config: Config, images: int = 32) -> Finding:
    """Measure the training loader, decoding and augmentation included, from its second batch on."""
    try:
        samples = split_samples(config.dataset, "train")
        device = check_device(config.training.device).partition(":")[0]
        workers = num_workers(config.training.workers, device)
        batch_size = max(1, min(4, len(samples) // 2))
        chosen = [sample for sample in evenly_spaced(samples, images) for _ in range(-(-images // len(samples)))]
        loader = train_loader(chosen, config.hierarchy, config.transform, batch_size=batch_size, workers=workers)
        loading = batches(loader)
        next(loading)
        started = time.perf_counter()
        count = sum(len(batch["image"]) for batch in loading)
        rate = count / (time.perf_counter() - started)
    except SeghieroError as error:
        return Finding("loader", "failed", str(error))
    height, width = config.transform.size
    found = f"{rate:.1f} images/s of {height}x{width} px with {workers} workers"
    slow = device == "cuda" and rate < MIN_RATE
    return Finding("loader", found, "slower than most GPUs train; increase training.workers." if slow else None)
