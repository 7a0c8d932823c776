"""`init_from`: a whole trained model as the start of another, kept where it fits, and a report of what does not."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from seghiero_core.checkpoint import read_checkpoint
from seghiero_core.config.schema import Config
from seghiero_core.errors import UsageError
from seghiero_core.events import Notify
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.model.segmentation import SegmentationModel
from seghiero_core.registry import BACKBONES, Statistics
from seghiero_core.weights.files import checkpoint_folder, read_json, read_statistics, read_weights, weights_file
from seghiero_core.weights.hub import is_hub_name
from seghiero_core.weights.pretrained import WeightsReport, check_tensor, match_backbone
from seghiero_core.weights.published import WHOLE_MODEL_FILES, PublishedWeights, fetch_weights

_OURS = ("mean", "std")  # of the backbone's entry where the source says nothing

_SHAPING = (
    *("depths", "hidden_sizes", "num_attention_heads", "sr_ratios", "mlp_ratios", "patch_sizes", "strides"),
    *("hidden_act", "layer_norm_eps"),
)


@dataclass(frozen=True)
class _Source:
    """A trained model.

    `backbone` is its state dict under any names, `others` the tensors of the other parts (key in the file, tensor)
    under the names of a SegmentationModel; `channels` has the class of each channel.
    """

    name: str
    backbone: Mapping[str, Tensor]
    others: Mapping[str, tuple[str, Tensor]]
    channels: Sequence[str]
    statistics: Statistics | None


def init_whole_model(
    model: SegmentationModel, config: Config, hierarchy: Hierarchy, notify: Notify = lambda event: None
) -> WeightsReport:
    """Load what `config.init_from` names into `model`: backbone, head and normalisation.

    That is a seghiero run or checkpoint, or a SegFormer of transformers (a folder or a name of the hub). Rows of the
    classifier follow the names of the classes. Parts of the head that differ are left as they are and reported, those
    of the backbone are an error. Raises UsageError where the config describes another kind of network, WeightsError
    where the weights cannot be had or are damaged.
    """
    source = _read_source(str(config.init_from), config, notify)
    named = f"init_from {source.name}"
    report, translated = match_backbone(model.backbone, source.backbone, named, _backbone_name(config))
    loaded = {f"backbone.{name}": value for name, (_, value) in translated.tensors.items()}

    own = model.state_dict()
    names = hierarchy.nodes[: len(own["head.classifier.weight"])] if "head.classifier.weight" in own else ()
    unexpected = list(report.unexpected)
    same_classes = list(source.channels) == list(names or hierarchy.nodes)
    for name, (key, value) in source.others.items():
        if not same_classes and name.startswith("head.") and not names:  # which tensors are per class is unknown
            unexpected.append(key)
            continue
        if name in own and _is_per_class(name) and value.shape[1:] == own[name].shape[1:]:
            value = _rows_by_name(value, source.channels, own[name], hierarchy.nodes)
        if name not in own or value.shape != own[name].shape:
            unexpected.append(key)
            continue
        check_tensor(value, own[name], key, named, "the config's network")
        loaded[name] = value
    if source.statistics:
        for name, values in zip(("mean", "std"), source.statistics, strict=True):
            loaded[name] = 255 * torch.tensor(values).reshape(1, 3, 1, 1)
    model.load_state_dict(loaded, strict=False)

    by_class = "head.classifier.weight" in loaded
    report = replace(
        report,
        source=source.name,
        loaded=tuple(name for name in own if name in loaded),
        missing=tuple(n for n in own if n not in loaded and not n.endswith("num_batches_tracked") and n not in _OURS),
        unexpected=tuple(unexpected),
        classes_dropped=tuple(name for name in source.channels if by_class and name not in names),
        classes_new=tuple(name for name in names if by_class and name not in source.channels),
    )
    notify(report.event())
    return report


def _is_per_class(key: str) -> bool:
    """Whether dimension 0 of a tensor of the model is classes: the last layer of the head and of the auxiliary head."""
    return re.fullmatch(r"head\.classifier\.(weight|bias)|auxiliary\.2\.(weight|bias)", key) is not None


def _rows_by_name(value: Tensor, old: Sequence[str], own: Tensor, new: Sequence[str]) -> Tensor:
    rows = own.clone()
    for i, name in enumerate(new[: len(own)]):
        if name in old:
            rows[i] = value[old.index(name)]
    return rows


def _read_source(name: str, config: Config, notify: Notify) -> _Source:
    path = Path(name)
    if path.exists() and (folder := checkpoint_folder(path)):
        return _read_seghiero(name, folder, config)
    if path.is_dir():
        return _read_transformers(name, path, config)
    if path.exists() or not is_hub_name(name):
        raise UsageError(
            f"init_from: '{name}' is no run, checkpoint or folder of a whole model (a relative path starts at the "
            "folder of the config) and no owner/name of the hub. For a backbone's weights alone: backbone.pretrained."
        )
    folder = fetch_weights(PublishedWeights(name, name, WHOLE_MODEL_FILES), notify=notify)
    return _read_transformers(name, folder, config)


def _read_seghiero(name: str, folder: Path, config: Config) -> _Source:
    checkpoint = read_checkpoint(folder)
    theirs, ours = _backbone_name(checkpoint.config), _backbone_name(config)
    if theirs != ours:
        raise UsageError(f"init_from: {name} has the backbone {theirs}, the config {ours}; they must be the same.")
    tensors = checkpoint.model_tensors()
    backbone = {key: value for key, value in tensors.items() if key.startswith("backbone.")}
    same_head = checkpoint.config.head.type == config.head.type  # in another head, same names may mean other layers
    others = {
        key if same_head or not key.startswith("head.") else f"other {key}": (key, value)
        for key, value in tensors.items()
        if key not in (*backbone, *_OURS)
    }
    nodes = checkpoint.config.hierarchy.nodes
    if "head.classifier.weight" in tensors:
        nodes = nodes[: len(tensors["head.classifier.weight"])]
    return _Source(name, backbone, others, list(nodes), read_statistics(folder))


def _backbone_name(config: Config) -> str:
    entry = BACKBONES.get(config.backbone.type)
    return f"{entry.name} {getattr(config.backbone, entry.selector, entry.default)}"


def _read_transformers(name: str, folder: Path, config: Config) -> _Source:
    from transformers import SegformerConfig

    from seghiero_core.backbones.networks.mit import mit_config

    entries = read_json(folder / "config.json")
    if entries.get("model_type") != "segformer":
        raise UsageError(f"init_from: {name} is no SegFormer of transformers (config.json, model_type: segformer).")
    theirs = SegformerConfig.from_dict(entries)
    variant = next(
        (
            variant
            for variant in BACKBONES.get("segformer").variants
            if all(getattr(theirs, key) == getattr(mit_config(variant), key) for key in _SHAPING)
        ),
        None,
    )
    if variant is None:
        raise UsageError(f"init_from: the encoder of {name} is none of MiT-B0 to B5.")
    needed = {
        "backbone": {"type": "segformer", "variant": variant},
        "head": {"type": "segformer", "proj_dim": theirs.decoder_hidden_size},
    }
    found = {
        "backbone": {"type": config.backbone.type, "variant": getattr(config.backbone, "variant", "mit-b0")},
        "head": {"type": config.head.type, "proj_dim": config.head.proj_dim or 256},
    }
    if found != needed:
        fix = "; ".join(f"{key}: {{{', '.join(f'{k}: {v}' for k, v in v.items())}}}" for key, v in needed.items())
        raise UsageError(f"init_from: {name} is a SegFormer with {variant}. Set {fix}.")
    state = read_weights(weights_file(folder))
    others = {
        key.replace("decode_head.", "head.").replace(".linear_c.", ".linear_projections.").replace(".proj.", "."): (
            key,
            value,
        )
        for key, value in state.items()
        if key.startswith("decode_head.")
    }
    if "head.classifier.weight" not in others:
        raise UsageError(f"init_from: {name} has no decoder; give it as backbone.pretrained instead.")
    backbone = {key: value for key, value in state.items() if not key.startswith("decode_head.")}
    channels = [label.strip() for _, label in sorted(theirs.id2label.items())]
    return _Source(name, backbone, others, channels, read_statistics(folder))
