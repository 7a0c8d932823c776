"""Files of stored features: each holds some samples, its name says its hash, and it is memory-mapped to be read."""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save

from seghiero_core.atomic import file_sha256, sync, temporary_name
from seghiero_core.data.loaders import SegmentationDataset
from seghiero_core.data.sampler import Draw
from seghiero_core.errors import DeviceError
from seghiero_core.training.run import Run

_INT8_LABELS = 127  # and IGNORE_INDEX, below 0
_DIGITS = 16  # of the hash, in the name
_OPEN_FILES = 512  # a process can have about 65,000 memory maps


class Shard(NamedTuple):
    """Which samples a file holds: those at consecutive positions in the data set, augmented in one way.

    Attributes:
        variant: Which augmentation, as in a `Draw`.
        repeat: As in a `Draw`.
        number: The number of the file, from 0, among those of the variant and the repeat.
    """

    variant: int
    repeat: int
    number: int

    @property
    def name(self) -> str:
        """The name of the file without its hash."""
        return f"{self.variant}-{self.repeat}-{self.number:06}"


def augmented_samples(run: Run) -> SegmentationDataset:
    """Return the training set of a run, decoded and augmented, whether or not its features are stored.

    Args:
        run: The run.

    Returns:
        The data set; its keys are draws.
    """
    dataset = run.train_loader.dataset
    return SegmentationDataset(dataset.samples, dataset.hierarchy, dataset.transform, dataset.seed)


def target_type(run: Run) -> torch.dtype:
    """Return the smallest type that holds the labels of a run.

    Args:
        run: The run.

    Returns:
        The type of stored targets.
    """
    return torch.int8 if len(run.hierarchy) + len(run.hierarchy.sets) <= _INT8_LABELS else torch.int16


def write_shard(folder: Path, shard: Shard, samples: Mapping[int, Mapping[str, torch.Tensor]]) -> Path:
    """Write a file at once or not at all, in place of a damaged one.

    Args:
        folder: The folder.
        shard: Which samples it holds.
        samples: The tensors of each sample by its position in the data set.

    Returns:
        The file.

    Raises:
        DeviceError: When the disk is full or takes no new files.
    """
    tensors = {f"{index}.{name}": value for index, sample in samples.items() for name, value in sample.items()}
    temporary = temporary_name(folder / f"{shard.name}.safetensors")
    try:
        temporary.write_bytes(save(tensors))
        sync(temporary)
        path = folder / f"{shard.name}.{file_sha256(temporary)[:_DIGITS]}.safetensors"
        for old in folder.glob(f"{shard.name}.*.safetensors"):
            old.unlink()
        return temporary.rename(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        what = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror
        raise DeviceError(
            f"{folder}: {what}, while features were stored. Free some space, set SEGHIERO_CACHE to another folder, or "
            "training.cache_features: false."
        ) from error


def find_shards(folder: Path) -> dict[str, Path]:
    """List the files of a folder.

    Args:
        folder: The folder, which need not exist.

    Returns:
        The files by `Shard.name`.
    """
    return {path.name.partition(".")[0]: path for path in sorted(folder.glob("[0-9]*.safetensors"))}


def is_intact(path: Path) -> bool:
    """Check the content of a file against the hash in its name.

    Args:
        path: The file.

    Returns:
        False for one that is truncated or altered, or can't be read.
    """
    try:
        return file_sha256(path)[:_DIGITS] == path.name.split(".")[1]
    except OSError:
        return False


class FeatureStore:
    """Looks up stored samples, by memory-mapping the files that hold them.

    Args:
        files: The file of each shard.
        per_shard: How many samples a file holds.
    """

    def __init__(self, files: Mapping[Shard, Path], per_shard: int) -> None:
        self.files, self.per_shard = dict(files), per_shard
        self._open: OrderedDict[Shard, Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": OrderedDict()}  # a spawned worker maps them itself

    def __call__(self, draw: Draw) -> dict[str, Any]:
        """Look up a sample.

        Args:
            draw: Which one.

        Returns:
            "target" (H,W int64), "counts" and "index" as `SegmentationDataset` returns them; "maps", "shapes" and
            "orders" as of `feature_maps.compute_maps`.

        Raises:
            DeviceError: When its file is gone.
        """
        variant, index, repeat = draw
        file, names = self._opened(Shard(variant, repeat, index // self.per_shard))
        found = {name: file.get_tensor(f"{index}.{name}") for name in names}
        own = {name: found.pop(name) for name in ("target", "counts", "shapes", "orders")}
        return {**own, "target": own["target"].to(torch.int64), "index": index, "maps": found}

    def _opened(self, shard: Shard) -> tuple[Any, list[str]]:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        path = self.files[shard]
        try:
            file = safe_open(path, "pt")
        except FileNotFoundError as error:
            raise DeviceError(f"{path} no longer exists; continue with --resume, which stores it again.") from error
        names = sorted({name.partition(".")[2] for name in file.keys()})  # noqa: SIM118 (a file is no dict)
        self._open[shard] = file, names
        if len(self._open) > _OPEN_FILES:
            self._open.popitem(last=False)
        return file, names
