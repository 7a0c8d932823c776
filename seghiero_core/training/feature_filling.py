"""Storing the features of a frozen backbone before training, by all processes of a run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate.utils import gather_object
from filelock import FileLock, Timeout
from torch.utils.data import DataLoader

from seghiero_core.atomic import make_folder
from seghiero_core.data.facts import CACHE_VARIABLE
from seghiero_core.data.loaders import batches
from seghiero_core.data.sampler import Draw
from seghiero_core.devices import any_process
from seghiero_core.errors import DeviceError
from seghiero_core.events import Notify
from seghiero_core.training.feature_cache import FeatureCache
from seghiero_core.training.feature_maps import compute_maps, images_at_once
from seghiero_core.training.feature_shards import (
    FeatureStore,
    Shard,
    augmented_samples,
    find_shards,
    is_intact,
    target_type,
    write_shard,
)
from seghiero_core.training.freezing import set_training_mode
from seghiero_core.training.interrupts import Interrupted, StopSignal
from seghiero_core.training.run import Run

_MIB = 2**20
_STOPPED = "stopped while features were stored; continue with --resume."
_PATIENCE = 1.0  # s between two looks at another run's lock


def fill_features(run: Run, cache: FeatureCache, stop: StopSignal, notify: Notify) -> None:
    """Store what is missing, and let the training loader read it; every process must call it.

    A file that a killed run has not completed is not there; one that is truncated or altered is computed again. Of two
    runs that need the same features, one waits for the other.

    Args:
        run: The run.
        cache: What it needs; `computed` is set.
        stop: Whether a signal asks the run to stop.
        notify: Receives "features" events with "done" of "samples", and warnings.

    Raises:
        DataError: When a file of the data is missing or damaged.
        DeviceError: When the disk is full, or not all processes see the same folder.
        Interrupted: When a signal asked the run to stop; what was stored is used by the next run.
    """
    accelerator, folder = run.accelerator, cache.folder
    rank, processes = accelerator.process_index, accelerator.num_processes
    set_training_mode(run.model, freeze_norm=run.config.training.freeze_norm)
    with _locked(run, folder, stop, notify):
        present = find_shards(folder)
        there = [shard for shard in cache.shards if shard.name in present]
        damaged = gather_object([shard for shard in there[rank::processes] if not is_intact(present[shard.name])])
        if damaged:
            name = present[damaged[0].name].name
            text = f"{folder}: the content of {len(damaged)} of its files has changed, such as {name}; "
            notify({"event": "warning", "text": f"{text}they are replaced."})
        missing = [shard for shard in cache.shards if shard.name not in present or shard in damaged]
        cache.computed = sum(len(cache.draws(shard)) for shard in missing)
        _check_disk(cache)
        done, own = cache.samples - cache.computed, missing[rank::processes]
        written = _write_shards(run, cache, own)
        for start in range(0, len(missing), processes):
            notify({"event": "features", "done": done, "samples": cache.samples})
            done += sum(len(cache.draws(shard)) for shard in missing[start : start + processes])
            next(written, None)  # where fewer files are left than there are processes, some have none
            if any_process(accelerator, stop.requested)[0]:
                raise Interrupted(_STOPPED)
        accelerator.wait_for_everyone()
    present = find_shards(folder)
    if lost := [shard.name for shard in cache.shards if shard.name not in present]:
        raise DeviceError(
            f"{folder}: {len(lost)} of {len(cache.shards)} files are not there. All processes must see the same "
            f"folder; set {CACHE_VARIABLE} to one that they share."
        )
    files = {shard: present[shard.name] for shard in cache.shards}
    run.train_loader.dataset.stored = FeatureStore(files, cache.per_shard)


def _write_shards(run: Run, cache: FeatureCache, shards: Sequence[Shard]) -> Iterator[Path]:
    """Compute and write files, one at a time."""
    device, loader = run.accelerator.device, run.train_loader
    at_once = images_at_once(device, run.config.training.batch_size)
    draws: list[list[Draw]] = []
    for shard in shards:
        held = cache.draws(shard)
        draws += [held[start : start + at_once] for start in range(0, len(held), at_once)]
    loading = DataLoader(
        augmented_samples(run),
        batch_sampler=draws,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
        generator=torch.Generator().manual_seed(run.config.training.seed),
    )
    computed = _compute(run, cache, batches(loading))
    for shard in shards:
        yield write_shard(cache.folder, shard, dict(next(computed) for _ in cache.draws(shard)))


def _compute(run: Run, cache: FeatureCache, loading: Iterator[dict[str, torch.Tensor]]) -> Iterator[tuple[int, dict]]:
    """Yield the position of each sample and the tensors to store."""
    model, smallest = run.accelerator.unwrap_model(run.model), target_type(run)
    for batch in loading:
        samples = compute_maps(model, run.images_of(batch), run.accelerator, cache.maps)
        for i, sample in enumerate(samples):
            maps = {name: packed.cpu() for name, packed in sample.pop("maps").items()}
            target, counts = batch["target"][i].to(smallest), batch["counts"][i].clone()
            yield int(batch["index"][i]), {**maps, **sample, "target": target, "counts": counts}


def _check_disk(cache: FeatureCache) -> None:
    needed, free = cache.computed * cache.sample_bytes / _MIB, shutil.disk_usage(cache.folder).free / _MIB
    if needed > free:
        raise DeviceError(
            f"{cache.folder}: the features take {needed:.0f} MiB, and the disk has {free:.0f} MiB left. Free some "
            f"space, set {CACHE_VARIABLE} to another folder, or lower training.augmentation_variants."
        )


@contextmanager
def _locked(run: Run, folder: Path, stop: StopSignal, notify: Notify) -> Iterator[None]:
    """Keep other runs from filling a folder; every process must call it, and the main process has the lock."""
    accelerator, waiting = run.accelerator, False
    make_folder(folder)
    lock = FileLock(folder / ".lock", fallback_to_soft=False)
    try:
        while True:
            try:
                if accelerator.is_main_process:
                    lock.acquire(timeout=_PATIENCE if waiting else 0)
                own = False
            except Timeout:
                own = True
            if own and not waiting:
                text = f"another run stores the same features in {folder}; this one waits for it."
                notify({"event": "warning", "text": text})
            waiting, stopping = any_process(accelerator, own, stop.requested)
            if stopping:
                raise Interrupted(_STOPPED)
            if not waiting:
                break
        if accelerator.is_main_process:
            os.utime(folder)  # when it was last used
            for path in folder.glob(".*.safetensors.*"):
                path.unlink(missing_ok=True)  # of a process that was killed
        accelerator.wait_for_everyone()
        yield
    finally:
        lock.release()
