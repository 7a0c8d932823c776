"""Batches of samples. Workers hold no state: a sample follows from its key and the seed alone."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from seghiero_core.config.schema import TransformConfig
from seghiero_core.data.augmentation import draw_augmentation, sample_generator
from seghiero_core.data.images import check_values
from seghiero_core.data.sampler import Blocks, EpochSampler, draws_per_epoch
from seghiero_core.data.samples import Sample
from seghiero_core.data.transforms import augment_image, augment_mask
from seghiero_core.errors import DataError, DeviceError
from seghiero_core.hierarchy.tree import Hierarchy

WORKER_DIED = (
    "a data loading worker died ({}). It was killed, or memory or shared memory ran out: set training.workers lower, "
    "or to 0."
)


class SegmentationDataset(Dataset):
    """Decoded samples: {"image": 3,H,W uint8 RGB, "target": H,W int64 node indices or IGNORE_INDEX, "index": int}.

    With `dataset.channels` the image is C,H,W float32 in stored units, NaN where there is no data.
    Without `transform` a key is an index, and the sample has its native size. With `transform` a key is
    (epoch, index, repeat), and the sample is augmented and has a fourth entry, "counts": its `label_counts`, N+S+1. A
    DataError is raised for a file that is missing or damaged, or doesn't fit the classes.

    Args:
        samples: The samples.
        hierarchy: The class tree.
        transform: How to augment; None doesn't.
        seed: The run's `training.seed`, for the augmentation.

    Attributes:
        stored: Where to look up what a key gives, in place of decoding it.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        hierarchy: Hierarchy,
        transform: TransformConfig | None = None,
        seed: int = 0,
    ) -> None:
        self.samples, self.hierarchy = tuple(samples), hierarchy
        self.transform, self.seed = transform, seed
        self.stored: Callable[[Any], dict[str, Any]] | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: Any) -> dict[str, Any]:
        if self.stored is not None:
            return self.stored(key)
        if self.transform is None:
            image, target = self.samples[key].read(self.hierarchy)
            image = _channels_first(image).float() if self.samples[key].bands else _channels_first(image)
            return {"image": image.contiguous(), "target": torch.from_numpy(target), "index": key}
        _, index, _ = key
        return {**self._augmented(self.samples[index], key), "index": index}

    def _augmented(self, sample: Sample, key: tuple[int, int, int]) -> dict[str, torch.Tensor]:
        """The augmented image, its target and the counts; only what is kept of the mask is turned into labels."""
        image, mask = sample.read_values(self.hierarchy)
        hierarchy = self.hierarchy.of_source(sample.source)
        check_values(mask, sample.mask, hierarchy)
        params = draw_augmentation(sample_generator(self.seed, *key), mask.shape, self.transform)
        target, counts = augment_mask(mask, params, hierarchy)
        image = augment_image(_channels_first(image), params, sample.bands)
        return {"image": image, "target": target, "counts": counts}


def train_loader(
    samples: Sequence[Sample],
    hierarchy: Hierarchy,
    transform: TransformConfig,
    *,
    batch_size: int,
    seed: int = 0,
    workers: int | str = "auto",
    device_type: str = "cpu",
    processes: int = 1,
    accumulation: int = 1,
    weights: Sequence[float] = (),
    variants: int | None = None,
) -> DataLoader:
    """Create the loader of shuffled, augmented batches.

    An epoch has whole steps of `batch_size` x `processes` x `accumulation` samples, so its steps depend on that product
    alone. With too few samples for one such step, short batches are dropped where every process gets a full one.
    `accelerator.prepare` shards the loader: each process takes every `processes`-th batch.

    Args:
        samples: The training set, source by source.
        hierarchy: The class tree.
        transform: How to augment.
        batch_size: Samples per process and batch.
        seed: The run's `training.seed`: it determines the order and the augmentation.
        workers: Number of worker processes, or "auto", as for `num_workers`.
        device_type: The device that the batches go to, such as "cuda"; memory is pinned for CUDA.
        processes: Number of training processes.
        accumulation: Batches per optimizer step.
        weights: How often each of `dataset.sources` is drawn. Default: every sample once per epoch.
        variants: See `EpochSampler`.

    Returns:
        A loader whose `sampler` is an `EpochSampler`.
    """
    lengths = _source_lengths(samples, weights)
    per_step = batch_size * processes * accumulation
    of_sources = [weights[source] for source in lengths if weights]
    blocks = _blocks(samples, lengths.values())
    sampler = EpochSampler([*lengths.values()], seed, per_step, of_sources, blocks, variants)
    return DataLoader(
        SegmentationDataset(samples, hierarchy, transform, seed),
        batch_size=batch_size,
        sampler=sampler,
        drop_last=sampler.length >= batch_size * processes,
        **_worker_options(workers, device_type, processes, seed),
    )


def epoch_length(samples: Sequence[Sample], weights: Sequence[float] = ()) -> int:
    """Compute how many samples an epoch of `train_loader` draws, before those that don't fill a step are dropped.

    Args:
        samples: The training set, source by source.
        weights: How often each of `dataset.sources` is drawn. Default: every sample once per epoch.

    Returns:
        The number of samples.
    """
    lengths = _source_lengths(samples, weights)
    return sum(draws_per_epoch(length, weights[source] if weights else 1) for source, length in lengths.items())


def eval_loader(
    samples: Sequence[Sample],
    hierarchy: Hierarchy,
    *,
    batch_size: int = 1,
    workers: int | str = "auto",
    device_type: str = "cpu",
    processes: int = 1,
) -> DataLoader:
    """Create the loader of unaugmented batches at native size, in the order of `samples`.

    Sharded over processes, the last batches repeat samples to come out even; "index" identifies them.

    Args:
        samples: The samples to evaluate.
        hierarchy: The class tree.
        batch_size: Samples per process and batch; 1 is used where the images differ in size.
        workers: Number of worker processes, or "auto", as for `num_workers`.
        device_type: The device that the batches go to, such as "cuda"; memory is pinned for CUDA.
        processes: Number of processes that share the work.

    Returns:
        A loader of batches of `SegmentationDataset`.
    """
    if batch_size > 1 and len({sample.reader.size(sample.index) for sample in samples}) > 1:
        batch_size = 1
    options = _worker_options(workers, device_type, processes, 0)
    if options["num_workers"]:
        options["prefetch_factor"] = 1  # images of native size may be large
    return DataLoader(SegmentationDataset(samples, hierarchy), batch_size=batch_size, **options)


def num_workers(workers: int | str, device_type: str = "cpu", processes: int = 1) -> int:
    """Resolve `training.workers`, choosing a number that fits the CPUs of this process for "auto".

    With a GPU that is up to 8, with one CPU left for the training process. Without a GPU the network itself needs the
    CPUs: a quarter of them, at most 4, and none on a machine with fewer than 4.

    Args:
        workers: A number, or "auto".
        device_type: The device that trains, such as "cuda".
        processes: Number of training processes on this machine, which share its CPUs.

    Returns:
        The number of worker processes; with 0 the training process loads the data itself.
    """
    if workers != "auto":
        return int(workers)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = usable // processes
    return min(4, share // 4) if device_type == "cpu" else max(1, min(8, share - 1))


def batches(loader: Iterable[Any]) -> Iterator[Any]:
    """Iterate over a loader, turning the errors of its workers into errors for the user.

    A DataError comes out of a worker wrapped in a traceback; here it gets its own message back.

    Args:
        loader: A loader of this module.

    Yields:
        The batches of the loader.

    Raises:
        DataError: When a file is missing or damaged, or doesn't fit the classes.
        DeviceError: When a worker died, or a disk is full.
    """
    try:
        yield from loader
    except (DataError, DeviceError) as error:
        # torch's wrapper ends with the formatted traceback, whose last line is "module.FileError: message".
        kind = DataError if isinstance(error, DataError) else DeviceError
        raise kind(re.split(r"^seghiero_core[\w.]+Error: ", str(error), flags=re.MULTILINE)[-1].strip()) from None
    except RuntimeError as error:
        if not is_dead_worker(error):
            raise
        raise DeviceError(WORKER_DIED.format(str(error).splitlines()[0])) from error


def is_dead_worker(error: BaseException) -> bool:
    """Check whether an error means that a worker died.

    PyTorch raises this error from a signal handler, so it can come from anywhere in the main thread.

    Args:
        error: An error raised in the main process.

    Returns:
        True for PyTorch's error about a dead DataLoader worker.
    """
    return isinstance(error, RuntimeError) and "DataLoader worker" in str(error)


def _channels_first(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)


def _source_lengths(samples: Sequence[Sample], weights: Sequence[float]) -> dict[Any, int]:
    """The number of samples of each source, in their order; without weights all samples count as one source."""
    return dict(Counter(sample.source if weights else None for sample in samples))


def _blocks(samples: Sequence[Sample], lengths: Iterable[int]) -> list[Blocks | None]:
    """For each source, which samples are stored together; None where the order doesn't matter."""
    blocks: list[Blocks | None] = []
    start = 0
    for length in lengths:
        reader = samples[start].reader
        indices = [sample.index for sample in samples[start : start + length]]
        block_of_sample = np.searchsorted(np.cumsum(reader.blocks), indices, side="right")
        blocks.append((block_of_sample, reader.window) if len(reader.blocks) > 1 else None)
        start += length
    return blocks


def _worker_options(workers: int | str, device_type: str, processes: int, seed: int) -> dict[str, Any]:
    count = num_workers(workers, device_type, processes)
    return {
        "num_workers": count,
        "persistent_workers": count > 0,
        "pin_memory": device_type == "cuda",
        "worker_init_fn": _ignore_interrupts,
        # Its own generator: a loader without one draws from torch's global state at every pass.
        "generator": torch.Generator().manual_seed(seed),
    }


def _ignore_interrupts(worker: int) -> None:
    """Leave Ctrl-C and a cluster's SIGTERM, which reach every process, to the training loop.

    The loop needs its workers to finish the step and save.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":  # on other systems Python can't tell who sent a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_on_sigterm_from_parent, daemon=True).start()


def _exit_on_sigterm_from_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass  # sent by someone else: the loop got the same signal, and ends its workers once it has saved
    os._exit(0)
