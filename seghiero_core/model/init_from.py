"""`init_from`: start a model from a whole trained model, keep the weights that fit, and report those that don't."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seghiero_core.checkpoint import read_checkpoint
from seghiero_core.config.schema import Config
from seghiero_core.errors import UsageError
from seghiero_core.events import Notify, ignore_events
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.model.factories import create_backbone
from seghiero_core.model.segmentation import SegmentationModel
from seghiero_core.model.stem import adapt_stem
from seghiero_core.registry import BACKBONES, Statistics
from seghiero_core.weights.files import checkpoint_folder, read_json, read_statistics, read_weights, weights_file
from seghiero_core.weights.hub import is_hub_name
from seghiero_core.weights.pretrained import WeightsReport, match_backbone, validate_tensor
from seghiero_core.weights.published import WHOLE_MODEL_FILES, PublishedWeights, fetch_weights

# Buffers of a SegmentationModel that come from its config unless the source says otherwise.
_STATISTICS_BUFFERS = ("mean", "std")

# Entries of a SegFormer's config that must be equal for its weights to fit.
_ARCHITECTURE_KEYS = (
    *("depths", "hidden_sizes", "num_attention_heads", "sr_ratios", "mlp_ratios", "patch_sizes", "strides"),
    *("hidden_act", "layer_norm_eps"),
)


@dataclass(frozen=True)
class _SourceModel:
    """A trained model to start from.

    Attributes:
        name: What `init_from` says.
        backbone: State dict of the backbone, in any known key layout.
        others: The other tensors: their names in a SegmentationModel, mapped to (key in the file, tensor).
        classes: The class of each channel of the logits.
        statistics: Mean and standard deviation (R, G, B in 0..1) of its inputs, if known.
        channels: `dataset.channels` of its config; None for RGB.
    """

    name: str
    backbone: Mapping[str, Tensor]
    others: Mapping[str, tuple[str, Tensor]]
    classes: Sequence[str]
    statistics: Statistics | None
    channels: int | None = None


def load_initial_weights(
    model: SegmentationModel, config: Config, hierarchy: Hierarchy, notify: Notify = ignore_events
) -> WeightsReport:
    """Load the backbone, head and normalization of the trained model that `config.init_from` names.

    The source is a seghiero run or checkpoint, or a SegFormer of transformers (a folder or a hub name). With
    `dataset.channels`, the stem of one for RGB is adapted, see `adapt_stem`. Rows of the classifier are matched by
    class name. Tensors of the head that don't fit keep their random values and are reported;
    tensors of the backbone that don't fit are an error.

    Args:
        model: The model to load into, in place.
        config: The model's config.
        hierarchy: The model's classes.
        notify: Receives a "download" event for each downloaded file and a "weights" event with the report.

    Returns:
        Which tensors were loaded, and which were not.

    Raises:
        UsageError: If `init_from` names nothing usable, or the config describes another network than the source.
        WeightsError: If the weights can't be downloaded or are damaged.
    """
    source = _read_source(str(config.init_from), config, notify)
    label = f"init_from {source.name}"
    report, loaded = _match_backbone(model, source, config, label)
    own = model.state_dict()
    has_classifier = "head.classifier.weight" in own
    classes = hierarchy.nodes[: len(own["head.classifier.weight"])] if has_classifier else ()
    same_classes = list(source.classes) == list(classes or hierarchy.nodes)
    unexpected = list(report.unexpected)
    for name, (key, value) in source.others.items():
        if not same_classes and name.startswith("head.") and not has_classifier:
            unexpected.append(key)  # no way to know which tensors of this head have a row per class
            continue
        if name in own and _has_row_per_class(name) and value.shape[1:] == own[name].shape[1:]:
            value = _match_rows(value, source.classes, own[name], hierarchy.nodes)
        if name not in own or value.shape != own[name].shape:
            unexpected.append(key)
            continue
        validate_tensor(value, own[name], key, label, "the config's network")
        loaded[name] = value
    if source.statistics and not config.dataset.channels:  # other images have their own
        for name, values in zip(_STATISTICS_BUFFERS, source.statistics, strict=True):
            loaded[name] = 255 * torch.tensor(values).reshape(1, 3, 1, 1)
    model.load_state_dict(loaded, strict=False)

    missing = [name for name in own if name not in loaded and name not in _STATISTICS_BUFFERS]
    classifier_loaded = "head.classifier.weight" in loaded
    report = replace(
        report,
        source=source.name,
        loaded=tuple(name for name in own if name in loaded),
        missing=tuple(name for name in missing if not name.endswith("num_batches_tracked")),
        unexpected=tuple(unexpected),
        classes_dropped=tuple(name for name in source.classes if classifier_loaded and name not in classes),
        classes_new=tuple(name for name in classes if classifier_loaded and name not in source.classes),
    )
    notify(report.event())
    return report


def _match_backbone(
    model: SegmentationModel, source: _SourceModel, config: Config, label: str
) -> tuple[WeightsReport, dict[str, Tensor]]:
    """The report on the backbone, and its tensors under their names in the model."""
    bands = config.dataset.bands
    if source.channels == config.dataset.channels:
        report, translated = match_backbone(model.backbone, source.backbone, label, _backbone_name(config))
        return report, {f"backbone.{name}": value for name, (_, value) in translated.tensors.items()}
    if bands is None or source.channels is not None:
        raise UsageError(
            f"init_from: {source.name} was trained on images of {source.channels} bands; set dataset.channels to that, "
            "or start from a network for RGB."
        )
    with torch.random.fork_rng(devices=[]):  # its random weights are replaced
        backbone = create_backbone({"backbone": {**config.backbone.model_dump(), "pretrained": False}})
    report, translated = match_backbone(backbone, source.backbone, label, _backbone_name(config))
    backbone.load_state_dict({name: value for name, (_, value) in translated.tensors.items()}, strict=False)
    adapt_stem(backbone, bands.channels, bands.rgb, _backbone_name(config))
    state = backbone.state_dict()
    return report, {f"backbone.{name}": state[name] for name in translated.tensors}


def _has_row_per_class(key: str) -> bool:
    """Return whether dimension 0 of a model's tensor is the classes: the last layer of the head or auxiliary head."""
    return re.fullmatch(r"head\.classifier\.(weight|bias)|auxiliary\.2\.(weight|bias)", key) is not None


def _match_rows(value: Tensor, old: Sequence[str], own: Tensor, new: Sequence[str]) -> Tensor:
    """Return `own` (rows for the classes `new`) with the rows of `value` (classes `old`) for the classes in both."""
    rows = own.clone()
    for i, name in enumerate(new[: len(own)]):
        if name in old:
            rows[i] = value[old.index(name)]
    return rows


def _read_source(name: str, config: Config, notify: Notify) -> _SourceModel:
    path = Path(name)
    if path.exists() and (folder := checkpoint_folder(path)):
        return _read_seghiero(name, folder, config)
    if path.is_dir():
        return _read_transformers(name, path, config)
    if path.exists() or not is_hub_name(name):
        raise UsageError(
            f"init_from: '{name}' is not a run, a checkpoint, the folder of a whole model or a hub name (owner/name). "
            "A relative path starts at the config's folder. To load a backbone alone, set backbone.pretrained instead."
        )
    folder = fetch_weights(PublishedWeights(name, name, WHOLE_MODEL_FILES), notify=notify)
    return _read_transformers(name, folder, config)


def _read_seghiero(name: str, folder: Path, config: Config) -> _SourceModel:
    checkpoint = read_checkpoint(folder)
    source_backbone, own_backbone = _backbone_name(checkpoint.config), _backbone_name(config)
    if source_backbone != own_backbone:
        raise UsageError(
            f"init_from: {name} has the backbone {source_backbone}, but the config has {own_backbone}. "
            "Set the same backbone in the config."
        )
    tensors = checkpoint.model_tensors()
    same_head = checkpoint.config.head.type == config.head.type
    backbone, others = {}, {}
    for key, value in tensors.items():
        if key.startswith("backbone."):
            backbone[key] = value
        elif key.startswith("head.") and not same_head:
            others[f"other {key}"] = (key, value)  # in another head, the same name may be another layer
        elif key not in _STATISTICS_BUFFERS:
            others[key] = (key, value)
    classes = checkpoint.config.hierarchy.nodes
    if "head.classifier.weight" in tensors:
        classes = classes[: len(tensors["head.classifier.weight"])]
    channels = checkpoint.config.dataset.channels
    return _SourceModel(name, backbone, others, list(classes), read_statistics(folder), channels)


def _backbone_name(config: Config) -> str:
    entry = BACKBONES.get(config.backbone.type)
    return f"{entry.name} {getattr(config.backbone, entry.selector, entry.default)}"


def _read_transformers(name: str, folder: Path, config: Config) -> _SourceModel:
    from transformers import SegformerConfig

    entries = read_json(folder / "config.json")
    if entries.get("model_type") != "segformer":
        raise UsageError(
            f"init_from: {name} is not a SegFormer of transformers (its config.json must have model_type: segformer)."
        )
    source_config = SegformerConfig.from_dict(entries)
    variant = _mit_variant(source_config)
    if variant is None:
        raise UsageError(f"init_from: the encoder of {name} is not one of MiT-B0 to MiT-B5.")
    needed = {
        "backbone": {"type": "segformer", "variant": variant},
        "head": {"type": "segformer", "proj_dim": source_config.decoder_hidden_size},
    }
    found = {
        "backbone": {"type": config.backbone.type, "variant": getattr(config.backbone, "variant", "mit-b0")},
        "head": {"type": config.head.type, "proj_dim": config.head.proj_dim or 256},
    }
    if found != needed:
        fix = "; ".join(f"{section}: {_flow_mapping(values)}" for section, values in needed.items())
        raise UsageError(f"init_from: {name} is a SegFormer with {variant}. Set {fix}.")

    backbone, others = {}, {}
    for key, value in read_weights(weights_file(folder)).items():
        if key.startswith("decode_head."):
            own_name = key.replace("decode_head.", "head.").replace(".linear_c.", ".linear_projections.")
            others[own_name.replace(".proj.", ".")] = (key, value)
        else:
            backbone[key] = value
    if "head.classifier.weight" not in others:
        raise UsageError(f"init_from: {name} has no decoder. Set backbone.pretrained to it instead of init_from.")
    classes = [label.strip() for _, label in sorted(source_config.id2label.items())]
    return _SourceModel(name, backbone, others, classes, read_statistics(folder))


def _mit_variant(source_config: Any) -> str | None:
    """Return the MiT variant with the architecture of a SegformerConfig, or None."""
    from seghiero_core.backbones.networks.mit import mit_config

    for variant in BACKBONES.get("segformer").variants:
        own_config = mit_config(variant)
        if all(getattr(source_config, key) == getattr(own_config, key) for key in _ARCHITECTURE_KEYS):
            return variant
    return None


def _flow_mapping(values: Mapping[str, Any]) -> str:
    """Write a mapping as YAML on one line."""
    return "{" + ", ".join(f"{key}: {value}" for key, value in values.items()) + "}"
