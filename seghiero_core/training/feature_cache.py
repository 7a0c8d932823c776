"""The cache of a frozen backbone's features: what a run has to store, where, and whether there is room."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seghiero_core.data.facts import CACHE_VARIABLE, user_cache
from seghiero_core.data.sampler import Draw
from seghiero_core.errors import ConfigError, DeviceError
from seghiero_core.training.bad_steps import copy_buffers, restore_buffers
from seghiero_core.training.feature_key import features_key
from seghiero_core.training.feature_shards import Shard, augmented_samples, target_type
from seghiero_core.training.freezing import set_training_mode
from seghiero_core.training.run import Run

SHARD_BYTES = 64 * 2**20
"""The size of a file of samples, unless one sample is larger."""
_MIB = 2**20


@dataclass
class FeatureCache:
    """The features that a run needs.

    Attributes:
        folder: Where they are; runs with equal features have the same.
        shards: Which samples each file holds.
        per_shard: How many these are, except in the last file of a variant.
        maps: The positions of the feature maps that the rest of the network reads.
        sample_bytes: The size of one sample with its target.
        images: The number of training images.
        computed: How many of the samples weren't there before.
    """

    folder: Path
    shards: list[Shard]
    per_shard: int
    maps: list[int]
    sample_bytes: int
    images: int
    computed: int = 0

    @property
    def samples(self) -> int:
        """The number of samples: images with all their variants."""
        return sum(len(self.draws(shard)) for shard in self.shards)

    def draws(self, shard: Shard) -> list[Draw]:
        """List what a file holds.

        Args:
            shard: Which file.

        Returns:
            Its samples.
        """
        start = shard.number * self.per_shard
        indices = range(start, min(start + self.per_shard, self.images))
        return [(shard.variant, index, shard.repeat) for index in indices]

    def describe(self) -> dict[str, Any]:
        """Describe the cache as plain values, for events.

        Returns:
            "folder", "maps", "samples", "mib", and how many of the samples were "computed".
        """
        return {
            "folder": self.folder,
            "maps": self.maps,
            "samples": self.samples,
            "mib": self.samples * self.sample_bytes / _MIB,
            "computed": self.computed,
        }


def plan_features(run: Run, first_epoch: int) -> FeatureCache | None:
    """Find out what `training.cache_features` has to store from an epoch on, and check that it may become so large.

    Args:
        run: The run, with the weights that it continues with.
        first_epoch: The epoch that training continues with, from 0.

    Returns:
        The cache, of which nothing is written yet; None where the config asks for none.

    Raises:
        ConfigError: When it would be larger than `training.cache_mib`, or FSDP shards the backbone.
        DeviceError: When there is no folder for it.
    """
    training = run.config.training
    if not training.cache_features:
        return None
    if run.is_sharded:
        raise ConfigError("training.cache_features: not available with FSDP, which shards the backbone; use DDP.")
    parent = user_cache()
    if parent is None:
        raise DeviceError(
            f"training.cache_features needs a folder, but {CACHE_VARIABLE} is 'off'; set it to a folder, or unset it."
        )
    model, dataset = run.accelerator.unwrap_model(run.model), augmented_samples(run)
    if not model.is_divisible:
        raise ConfigError(
            f"training.cache_features: the neck of backbone '{run.config.backbone.type}' learns, so its input has to "
            "be stored. Give the backbone the methods of `NeckedBackbone`, or set cache_features: false."
        )
    set_training_mode(run.model, freeze_norm=training.freeze_norm)
    sample = dataset[(0, 0, 0)]
    images = run.images_of({"image": torch.stack([sample["image"]] * 2)})
    with torch.no_grad(), run.accelerator.autocast():
        features = model.features(images)
    maps = find_maps_read(model, [each.float() for each in features], images.shape[2:])
    model.unread = [m for m in range(len(features)) if m not in maps]
    kept = [features[m][0].nbytes for m in maps]
    sample_bytes = sum(kept) + sample["target"].numel() * target_type(run).itemsize
    cache = FeatureCache(
        parent / "features" / features_key(run, maps),
        shards=[],
        per_shard=max(1, SHARD_BYTES // sample_bytes),
        maps=maps,
        sample_bytes=sample_bytes,
        images=len(dataset),
    )
    cache.shards = _needed_shards(run, cache, first_epoch)
    _check_size(cache, training.cache_mib)
    return cache


@torch.no_grad()
def find_maps_read(model: nn.Module, features: Sequence[torch.Tensor], size: Sequence[int]) -> list[int]:
    """Find which maps of a frozen backbone the rest of the network reads: those whose values change the output.

    Args:
        model: The network. Its modes and buffers are restored.
        features: What `SegmentationModel.features` returned for two or more images.
        size: (H, W) of the images.

    Returns:
        Their positions.
    """
    model.unread = ()
    training, buffers = {module: module.training for module in model.modules()}, copy_buffers(model)

    def outputs(mode: bool, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        model.train(mode)
        torch.manual_seed(0)
        found = model.forward(None, maps, size)  # a compiled model would be compiled for these maps
        restore_buffers(model, buffers)
        rest = found.head_outputs.values() if found.head_outputs else ()
        return [each for each in (*found[:3], *rest) if isinstance(each, torch.Tensor)]

    def differ(base: Sequence[torch.Tensor], i: int, *values: torch.Tensor) -> bool:
        for mode in (True, False):
            expected = outputs(mode, base)
            for value in values:
                found = outputs(mode, [*base[:i], value, *base[i + 1 :]])
                if not all(map(torch.equal, expected, found)):
                    return True
        return False

    read, empty = [], [torch.zeros_like(each) for each in features]
    with torch.random.fork_rng(devices=[]):  # every step seeds the generators of all devices
        for i, values in enumerate(features):
            # Nearly every operation passes NaN on; comparisons and sorting don't, but find other values.
            if differ(empty, i, torch.full_like(values, torch.nan)) or differ(features, i, -values, empty[i]):
                read.append(i)
    for module, mode in training.items():
        module.training = mode
    return read


def _needed_shards(run: Run, cache: FeatureCache, first_epoch: int) -> list[Shard]:
    """The files with the samples that the epochs from the first on draw."""
    training, needed = run.config.training, set[Shard]()
    variants = min(training.augmentation_variants, training.epochs - first_epoch)
    for epoch in range(first_epoch, training.epochs):
        run.sampler.start_epoch(epoch)
        needed |= {Shard(variant, repeat, index // cache.per_shard) for variant, index, repeat in run.sampler}
        if not run.config.dataset.weights and len(needed) == variants * -(-cache.images // cache.per_shard):
            break  # these are all
    return sorted(needed)


def _check_size(cache: FeatureCache, limit: int) -> None:
    """Check the size of the whole cache against `training.cache_mib`."""
    others: dict[Path, int] = defaultdict(int)
    for path in cache.folder.parent.glob("*/*.safetensors"):
        if path.parent != cache.folder:
            others[path.parent] += path.stat().st_size
    needed, used = cache.samples * cache.sample_bytes / _MIB, sum(others.values()) / _MIB
    if needed + used <= limit:
        return
    of_others = ""
    if others:
        oldest = min(others, key=lambda folder: folder.stat().st_mtime)
        of_others = f", and those of other runs in {cache.folder.parent} take {used:.0f} MiB"
        of_others += f" (delete what you don't need; {oldest.name} was used longest ago)"
    raise ConfigError(
        f"training.cache_mib: the features of this run take {needed:.0f} MiB ({cache.sample_bytes / _MIB:.2f} MiB for "
        f"each image and variant){of_others}. That is more than {limit} MiB: raise it, or lower "
        "training.augmentation_variants or transform.size."
    )
