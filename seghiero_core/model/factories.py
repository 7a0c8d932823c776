"""Factories that build backbones, heads and whole models from a config.

Nothing here imports torch until a network is built, so channels can be listed without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from seghiero_core.config.schema import Config, DatasetConfig
from seghiero_core.errors import CheckpointError, UsageError, nearest, shorten
from seghiero_core.events import Notify, ignore_events
from seghiero_core.registry import BACKBONES, HEADS, BackboneEntry, Channels, HeadEntry, Statistics

if TYPE_CHECKING:
    from torch import Tensor, nn

    from seghiero_core.model.segmentation import SegmentationModel


def create_backbone(config: Any, notify: Notify = ignore_events) -> nn.Module:
    """Build the backbone of a config and, if `backbone.pretrained` is set, load its pretrained weights.

    With `dataset.channels` its stem is adapted then, see `adapt_stem`.

    Args:
        config: A loaded config, or a dict with its sections; `backbone` is read, and `channels` and `rgb` of `dataset`.
        notify: Receives a "download" event for each downloaded file and a "weights" event with the `WeightsReport`.

    Returns:
        A module with `forward(x: B,3,H,W) -> [C1, C2, C3, C4]`.

    Raises:
        UsageError: If the type, variant or an option is unknown, or the stem can't be adapted.
        WeightsError: If the pretrained weights can't be downloaded, read or matched to the backbone.

    Example:
        >>> import torch
        >>> backbone = create_backbone({"backbone": {"type": "resnet", "depth": 18}})
        >>> [tuple(feature.shape) for feature in backbone.eval()(torch.rand(1, 3, 64, 96))]
        [(1, 64, 16, 24), (1, 128, 8, 12), (1, 256, 4, 6), (1, 512, 2, 3)]
    """
    section = _section(config, "backbone")
    entry = BACKBONES.get(section["type"])
    variant = _variant(entry, section)
    options = _options(entry, section, {"type", "pretrained", entry.selector})
    backbone = entry.build(variant, **options)
    if pretrained := section["pretrained"]:
        from seghiero_core.weights.pretrained import load_pretrained

        load_pretrained(backbone, entry, variant, pretrained, notify)
    if bands := _dataset(config).bands:
        from seghiero_core.model.stem import adapt_stem

        adapt_stem(backbone, bands.channels, bands.rgb, f"{entry.name} {variant}")
    return backbone


def get_backbone_channels(config: Any) -> Channels:
    """Look up the channels of a backbone's four stages without building it.

    Args:
        config: A loaded config, or a dict with its sections; only `backbone` is read.

    Returns:
        (c1, c2, c3, c4), finest stage first.

    Raises:
        UsageError: If the type or variant is unknown.

    Example:
        >>> get_backbone_channels({"backbone": {"type": "convnext", "variant": "tiny"}})
        (96, 192, 384, 768)
    """
    section = _section(config, "backbone")
    entry = BACKBONES.get(section["type"])
    return entry.variants[_variant(entry, section)]


def get_backbone_strides(config: Any) -> tuple[int, int, int, int]:
    """Look up the strides of a backbone's four stages without building it.

    Args:
        config: A loaded config, or a dict with its sections; only `backbone` is read.

    Returns:
        (4, 8, 16, 32), with the strides of C3 and C4 lowered to `output_stride` if the config sets it.

    Raises:
        UsageError: If the type is unknown.

    Example:
        >>> get_backbone_strides({"backbone": {"type": "resnet", "output_stride": 8}})
        (4, 8, 8, 8)
    """
    section = _section(config, "backbone")
    return BACKBONES.get(section["type"]).strides(int(section.get("output_stride", 32)))


def get_statistics(config: Any) -> Statistics:
    """Look up the mean and standard deviation that a backbone's inputs are normalized with.

    Args:
        config: A loaded config, or a dict with its sections; only `backbone` is read.

    Returns:
        (mean, std), each three floats (R, G, B in 0..1), of the data that the backbone's weights were trained on.

    Raises:
        UsageError: If the type or variant is unknown.
        WeightsError: If `pretrained` is neither a known tag nor an existing path.
    """
    from seghiero_core.weights.pretrained import pretrained_statistics

    section = _section(config, "backbone")
    entry = BACKBONES.get(section["type"])
    return pretrained_statistics(entry, _variant(entry, section), section["pretrained"])


def create_head(config: Any, channels: Sequence[int], num_classes: int, *, embedding: bool = True) -> nn.Module:
    """Build the head of a config.

    Args:
        config: A loaded config, or a dict with its sections; `head` is read, and `output_stride` of `backbone`.
        channels: Channels of C1 to C4.
        num_classes: Channels of the logits.
        embedding: Whether to build the embedding branch. Without it the head returns None as its embedding.

    Returns:
        A module with `forward([C1, C2, C3, C4]) -> (logits, embedding)`.

    Raises:
        UsageError: If the type or an option is unknown.

    Example:
        >>> import torch
        >>> head = create_head({"head": {"type": "segformer"}}, (32, 64, 160, 256), num_classes=5).eval()
        >>> sizes = zip((32, 64, 160, 256), (16, 8, 4, 2))
        >>> logits, embedding = head([torch.rand(1, c, size, size) for c, size in sizes])
        >>> tuple(logits.shape), tuple(embedding.shape)
        ((1, 5, 16, 16), (1, 256, 16, 16))
    """
    section = _section(config, "head")
    entry = HEADS.get(section["type"])
    options = _options(entry, section, {"type", "proj_dim"})
    given = {"output_stride": get_backbone_strides(config)[3], "embedding": embedding}
    options |= {name: given[name] for name in entry.receives}
    return entry.build(list(channels), num_classes, section["proj_dim"] or entry.proj_dim, **options)


def build_model(
    config: Any,
    num_classes: int,
    *,
    embedding: bool = False,
    auxiliary: bool = False,
    notify: Notify = ignore_events,
) -> SegmentationModel:
    """Assemble a backbone, a head and, if asked for, an auxiliary head for training.

    Args:
        config: A loaded config, or a dict with its sections; `backbone` and `head` are read, and of `dataset` what the
            images are.
        num_classes: Channels of the logits.
        embedding: Whether the head builds its embedding branch.
        auxiliary: Whether to add a small head on C3 that gives `auxiliary_logits` in training mode.
        notify: Receives the events of `create_backbone`.

    Returns:
        The model, in training mode and on the CPU.

    Raises:
        UsageError: If a type, variant or option is unknown.
        WeightsError: If the pretrained weights can't be downloaded, read or matched to the backbone.

    Example:
        >>> import torch
        >>> model = build_model({"backbone": {"type": "resnet", "depth": 18}}, num_classes=5, embedding=False)
        >>> tuple(model.eval()(torch.zeros(1, 3, 50, 70)).logits.shape)
        (1, 5, 50, 70)
    """
    from seghiero_core.model.segmentation import AuxiliaryHead, SegmentationModel

    channels = get_backbone_channels(config)
    dataset = _dataset(config)
    if dataset.bands and not (dataset.mean and dataset.std):
        raise UsageError("dataset.mean and dataset.std are required with dataset.channels.")
    mean, std = (dataset.mean, dataset.std) if dataset.bands else get_statistics(config)
    model = SegmentationModel(
        create_backbone(config, notify),
        create_head(config, channels, num_classes, embedding=embedding),
        mean=mean,
        std=std,
        stored_units=dataset.bands is not None,
        stride=get_backbone_strides(config)[3],
        auxiliary=AuxiliaryHead(channels[2], num_classes) if auxiliary else None,
    )
    if model.has_neck:
        from seghiero_core.model.neck import freeze_unread_neck

        freeze_unread_neck(model)
    return model


def build_trained_model(config: Any, num_classes: int, tensors: Mapping[str, Tensor]) -> SegmentationModel:
    """Build the model of a config for inference and load the weights of a checkpoint into it.

    The embedding branch and the auxiliary head are not built, and their tensors are skipped. Pretrained weights are
    never looked up, so this needs no internet connection.

    Args:
        config: A loaded config, or a dict with its sections, as for `build_model`.
        num_classes: Channels of the logits.
        tensors: The checkpoint's state dict.

    Returns:
        The model in eval mode, on the CPU.

    Raises:
        CheckpointError: If a key is missing or unknown, or a shape differs.
    """
    backbone = {**_section(config, "backbone"), "pretrained": False}
    sections = {"backbone": backbone, "head": _section(config, "head"), "dataset": _dataset(config)}
    model = build_model(sections, num_classes, embedding=False)
    training_only = ("auxiliary.", "head.embedding.")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(training_only)}
    own = model.state_dict()
    faults = [f"missing: {name}" for name in own if name not in kept]
    faults += [f"unknown: {name}" for name in kept if name not in own]
    faults += [
        f"{name}: shape {tuple(kept[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own
        if name in kept and kept[name].shape != own[name].shape
    ]
    if faults:
        listed = shorten(faults, 10, separator="\n  ")
        raise CheckpointError(f"the checkpoint doesn't fit the network of its config; was either changed?\n  {listed}")
    model.load_state_dict(kept)
    return model.eval()


def _section(config: Any, name: str) -> Mapping[str, Any]:
    """Return a section of a config with its defaults filled in."""
    if hasattr(config, name):
        return getattr(config, name).model_dump()
    if not isinstance(config, Mapping):
        raise UsageError(f"expected a loaded config or a dict with its sections, found {config!r}; see load_config.")
    if unknown := [key for key in config if key not in Config.model_fields]:
        raise UsageError(f"unknown section '{unknown[0]}' in the config.{nearest(unknown[0], Config.model_fields)}")
    try:
        return type(Config.model_fields[name].default).model_validate(config.get(name, {})).model_dump()
    except ValidationError as error:
        raise UsageError(f"{name}: {error.errors()[0]['msg']}") from None


def _dataset(config: Any) -> DatasetConfig:
    """Return the `dataset` section, of which a dict may have only the keys that matter to a network, or nothing."""
    dataset = config.get("dataset", {}) if isinstance(config, Mapping) else getattr(config, "dataset", {})
    return DatasetConfig.model_validate(dataset)


def _variant(entry: BackboneEntry, section: Mapping[str, Any]) -> str:
    return entry.check_variant(section.get(entry.selector, entry.default))


def _options(entry: BackboneEntry | HeadEntry, section: Mapping[str, Any], fixed: set[str]) -> dict[str, Any]:
    options = {key: value for key, value in section.items() if key not in fixed}
    for key in options:
        if key not in entry.options:
            known = sorted({*fixed, *entry.options})
            raise UsageError(f"{key}: unknown key for {entry.name}.{nearest(key, known)} Known: {', '.join(known)}.")
    return options
