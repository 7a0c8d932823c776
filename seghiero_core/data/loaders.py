"""Batches. No worker holds state: what a sample becomes follows from its key and the seed alone."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from seghiero_core.data.audit import strange_values
from seghiero_core.data.images import NO_LABEL, node_table, opened, read_image, read_mask, to_nodes, upright_size
from seghiero_core.data.samples import Sample
from seghiero_core.data.transforms import augment_image, augment_target, draw_augmentation, sample_generator
from seghiero_core.errors import DataError, DeviceError
from seghiero_core.hierarchy.tree import Hierarchy

WORKER_DIED = (
    "a data loading worker died ({}). It was killed, or memory or shared memory ran out: set training.workers lower, "
    "or to 0."
)
SHUFFLE_STREAM = 0x5EED  # a fourth word of entropy, so that shuffling shares no stream with any sample's augmentation


@dataclass(frozen=True)
class Augment:
    """The options of `draw_augmentation`, with the seed; size (H, W) in px."""

    size: tuple[int, int]
    scale: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    color_jitter: float = 0.3
    seed: int = 0


class EpochSampler(Sampler):
    """Keys (epoch, index) in an order that depends on (seed, epoch) alone, as many as fill whole steps.

    What is left over after steps of `per_step` samples is dropped; it is other samples in every epoch. Call
    `start_epoch` before each pass. It has another name than `set_epoch` on purpose: accelerate's loader calls a method
    of that name with its own count at every pass, which would undo a resumed position.
    """

    def __init__(self, length: int, seed: int, per_step: int = 1) -> None:
        self.length, self.seed = length, seed
        self.used = length - length % per_step if length >= per_step else length
        self.epoch, self.start = 0, 0

    def start_epoch(self, epoch: int, start: int = 0) -> None:
        """Make the next pass that of `epoch`, without its first `start` samples (those seen by all processes)."""
        self.epoch, self.start = epoch, start

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng((self.seed, self.epoch, 0, SHUFFLE_STREAM)).permutation(self.length)
        epoch = self.epoch
        return ((epoch, int(index)) for index in order[self.start : self.used])

    def __len__(self) -> int:
        return max(0, self.used - self.start)


class SegmentationDataset(Dataset):
    """Decoded samples: {"image": 3,H,W uint8 RGB, "target": H,W int64 node index or IGNORE_INDEX, "index": int}.

    With `augment` its keys are (epoch, index), without it they are indices and the size is the native one. Raises
    DataError for a file that has vanished, broke, or doesn't fit the classes.
    """

    def __init__(self, samples: Sequence[Sample], hierarchy: Hierarchy, augment: Augment | None = None) -> None:
        self.samples, self.table, self.augment = tuple(samples), node_table(hierarchy), augment

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: Any) -> dict[str, Any]:
        epoch, index = key if self.augment else (0, key)
        image, target = self._decoded(self.samples[index])
        if self.augment:
            a = self.augment
            how = draw_augmentation(
                sample_generator(a.seed, epoch, index),
                tuple(target.shape),
                size=a.size,
                scale=a.scale,
                flip=a.flip,
                color_jitter=a.color_jitter,
            )
            image, target = augment_image(image, how), augment_target(target, how)
        return {"image": image.contiguous(), "target": target, "index": index}

    def _decoded(self, sample: Sample) -> tuple[torch.Tensor, torch.Tensor]:
        image, mask = read_image(sample.image), read_mask(sample.mask)
        if mask.shape != image.shape[:2]:
            raise DataError(
                f"{sample.mask} is {mask.shape[0]}x{mask.shape[1]} px (HxW), its image {sample.image} is "
                f"{image.shape[0]}x{image.shape[1]}. Export the mask at the image's size."
            )
        nodes = to_nodes(mask, self.table)
        if nodes.min() == NO_LABEL:
            raise strange_values(sample, Counter(mask[nodes == NO_LABEL].tolist()))
        return torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(nodes)


def train_loader(
    samples: Sequence[Sample],
    hierarchy: Hierarchy,
    augment: Augment,
    *,
    batch_size: int,
    workers: int | str = "auto",
    device_type: str = "cpu",
    processes: int = 1,
    accumulation: int = 1,
) -> DataLoader:
    """Shuffled, augmented batches of `batch_size` per process; its `sampler` is the `EpochSampler`.

    An epoch is whole steps of `batch_size` x `processes` x `accumulation` samples, so that its steps depend on that
    product alone, where there are samples enough for one. Else short batches are dropped where there is a full one per
    process. `accelerator.prepare` shards it: each process takes every `processes`-th batch.
    """
    sampler = EpochSampler(len(samples), augment.seed, batch_size * processes * accumulation)
    return DataLoader(
        SegmentationDataset(samples, hierarchy, augment),
        batch_size=batch_size,
        sampler=sampler,
        drop_last=len(samples) >= batch_size * processes,
        **_loading(workers, device_type, processes, augment.seed),
    )


def eval_loader(
    samples: Sequence[Sample],
    hierarchy: Hierarchy,
    *,
    batch_size: int = 1,
    workers: int | str = "auto",
    device_type: str = "cpu",
    processes: int = 1,
) -> DataLoader:
    """Batches at native size in the order of `samples`; one image at a time where their sizes differ.

    Sharded over processes, the last batches repeat samples to come out even; "index" tells which.
    """
    if batch_size > 1 and len({_size(sample) for sample in samples}) > 1:
        batch_size = 1
    return DataLoader(
        SegmentationDataset(samples, hierarchy),
        batch_size=batch_size,
        **_loading(workers, device_type, processes, 0),
    )


def num_workers(workers: int | str, device_type: str = "cpu", processes: int = 1) -> int:
    """`workers` itself, or for "auto" a count that fits the CPUs this process may use.

    With a GPU up to 8, leaving one CPU for the training process. Without one the network needs the CPUs: a
    quarter of them, 4 at most, and none on a machine with fewer than 4.
    """
    if workers != "auto":
        return int(workers)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = usable // processes
    return max(0, min(4, share // 4)) if device_type == "cpu" else max(1, min(8, share - 1))


def batches(loader: Iterable[Any]) -> Iterator[Any]:
    """Iterate over `loader`, with the errors of its workers as the user should read them.

    A DataError comes out of a worker wrapped in a traceback; here it has its own message again. Raises DeviceError
    where a worker died.
    """
    try:
        yield from loader
    except DataError as error:
        # torch's wrapper ends with the formatted traceback, whose last line is "module.DataError: message".
        raise DataError(str(error).rpartition("DataError: ")[2].strip()) from None
    except RuntimeError as error:
        if not is_dead_worker(error):
            raise
        raise DeviceError(WORKER_DIED.format(str(error).splitlines()[0])) from error


def is_dead_worker(error: BaseException) -> bool:
    """Whether `error` says that a worker is gone. PyTorch raises it at any place of the main thread, by a signal."""
    return isinstance(error, RuntimeError) and "DataLoader worker" in str(error)


def _size(sample: Sample) -> tuple[int, int]:
    with opened(sample.image) as image:
        return upright_size(image)


def _loading(workers: int | str, device_type: str, processes: int, seed: int) -> dict[str, Any]:
    count = num_workers(workers, device_type, processes)
    return {
        "num_workers": count,
        "persistent_workers": count > 0,
        "pin_memory": device_type == "cuda",
        "worker_init_fn": _leave_interrupts_to_the_loop,
        # Its own generator: a loader without one draws from torch's global state at every pass.
        "generator": torch.Generator().manual_seed(seed),
    }


def _leave_interrupts_to_the_loop(worker: int) -> None:
    """Ctrl-C and a cluster's SIGTERM reach every process; the loop needs its workers to finish the step and save."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":  # elsewhere a signal doesn't tell its sender to Python
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_the_parent_says_so, daemon=True).start()


def _end_when_the_parent_says_so() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass  # from somebody else; the loop has had the same signal, and ends its workers when it has saved
    os._exit(0)
