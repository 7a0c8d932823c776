"""What the stored features of a run depend on, as a hash that names their folder."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from importlib.metadata import version

import torch

from seghiero_core.config.schema import Config
from seghiero_core.data.samples import Sample
from seghiero_core.plugins.loading import current_loader
from seghiero_core.registry import NECK
from seghiero_core.training.run import Run
from seghiero_core.version import __version__

_FORMAT = 1  # another number when the files change
_PACKAGES = ("timm", "transformers", "torchvision", "numpy", "pillow")  # of networks, decoding and augmentation
_SETTLED = 2.1  # s after which files have a stamp, see `Reader.stamp`


def features_key(run: Run, maps: Sequence[int]) -> str:
    """Hash everything that stored features depend on.

    That is the backbone with its weights, the training images and masks, the classes, the augmentation and its seed,
    the versions of packages, the files of plugins, and what decides about the last bits: precision, memory layout and
    the machine.

    Args:
        run: The run, with the weights that it continues with.
        maps: The positions of the maps that are stored.

    Returns:
        32 hexadecimal digits.
    """
    config, device = run.config, run.accelerator.device
    model = run.accelerator.unwrap_model(run.model)
    if device.type == "cpu":
        machine = [torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()]
    else:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        machine = [name, config.training.batch_size]
    facts = {
        "format": _FORMAT,
        "maps": [*maps],
        "backbone": config.backbone.model_dump(mode="json", exclude={"pretrained", "gradient_checkpointing"}),
        "classes": config.classes.model_dump(mode="json", exclude={"colors"}),
        "sources": [each.model_dump(mode="json", include={"labels", "ignore"}) for each in config.dataset.parts],
        "bands": repr(config.dataset.bands),
        "transform": config.transform.model_dump(mode="json"),
        "seed": config.training.seed,
        "precision": run.precision,
        "channels_last": config.training.channels_last,
        "torch": torch.__version__,
        "versions": [__version__, *map(version, _PACKAGES)],
        "plugins": _plugin_sources(config),
        "machine": [device.type, *machine],
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    backbone = {name: tensor for name, tensor in model.backbone.state_dict().items() if not name.startswith(NECK)}
    weights = {**backbone, "image mean": model.mean, "image std": model.std}
    for name, tensor in weights.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    for line in _stamps(run.train_loader.dataset.samples):
        digest.update(line.encode())
    return digest.hexdigest()[:32]


def _plugin_sources(config: Config) -> list[dict[str, str]]:
    """The hashes of the modules of the plugins that have the backbone or a reader."""
    used = {f"backbone {config.backbone.type}", *(f"reader {part.type}" for part in config.dataset.parts)}
    return [each.sources() for each in current_loader().loaded.values() if used & set(each.registered)]


def _stamps(samples: Sequence[Sample]) -> list[str]:
    """A text for each sample that changes whenever its files do."""
    stamps = [sample.reader.stamp(sample.index) for sample in samples]
    if None in stamps:
        time.sleep(_SETTLED)  # files that have just been written have none yet
        stamps = [sample.reader.stamp(sample.index) for sample in samples]
    for i, sample in enumerate(samples):
        if stamps[i] is None:
            (image, _), (mask, _) = sample.reader.encoded(sample.index)
            stamps[i] = hashlib.sha256(image).hexdigest() + hashlib.sha256(mask).hexdigest()
    return [f"{sample.image}\n{sample.mask}\n{stamp}\n" for sample, stamp in zip(samples, stamps, strict=True)]
