"""From a config to a network: the factories, and where they meet.

Nothing here imports torch until something is built, so that channels can be listed without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from seghiero_core.config.schema import Config
from seghiero_core.errors import CheckpointError, UsageError, nearest, shorten
from seghiero_core.registry import (
    BACKBONES,
    GIVEN_BY_MODEL,
    HEADS,
    BackboneEntry,
    Channels,
    HeadEntry,
    Statistics,
    keyword_options,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from seghiero_core.events import Notify
    from seghiero_core.model.segmentation import SegmentationModel


def create_backbone(config: Any, notify: Notify = lambda event: None) -> nn.Module:
    """The backbone of `config` (a loaded config, or a dict with its sections), with its published weights if asked.

    A download and the report of what was loaded are told through `notify(event)`, as in `train`.
    Raises UsageError for an unknown type, variant or option, WeightsError if `pretrained` weights cannot be had.
    """
    section = _section(config, "backbone")
    entry = BACKBONES.get(section["type"])
    variant = _variant(entry, section)
    options = _options(entry, section, {"type", "pretrained", entry.selector})
    backbone = entry.build(variant, **options)
    if pretrained := section["pretrained"]:
        from seghiero_core.weights.pretrained import load_pretrained

        load_pretrained(backbone, entry, variant, pretrained, notify)
    return backbone


def get_backbone_channels(config: Any) -> Channels:
    """(c1, c2, c3, c4) of the backbone of `config`, known without building it."""
    section = _section(config, "backbone")
    entry = BACKBONES.get(section["type"])
    return entry.variants[_variant(entry, section)]


def get_backbone_strides(config: Any) -> tuple[int, int, int, int]:
    """(4, 8, 16, 32), C3's and C4's lowered to `output_stride` where the backbone's section sets it."""
    section = _section(config, "backbone")
    return BACKBONES.get(section["type"]).strides(int(section.get("output_stride", 32)))


def get_statistics(config: Any) -> Statistics:
    """(mean, std) of R, G, B in 0..1 that the backbone of `config` expects: those of its weights' training data."""
    from seghiero_core.weights.pretrained import pretrained_statistics

    section = _section(config, "backbone")
    entry = BACKBONES.get(section["type"])
    return pretrained_statistics(entry, _variant(entry, section), section["pretrained"])


def create_head(config: Any, channels: Sequence[int], num_classes: int, *, embedding: bool = True) -> nn.Module:
    """The head of `config` on features of `channels`, giving (logits, embedding).

    Without `embedding` that branch isn't built and None is given. Raises UsageError for an unknown type or option.
    """
    section = _section(config, "head")
    entry = HEADS.get(section["type"])
    options = _options(entry, section, {"type", "proj_dim"})
    given = {"output_stride": get_backbone_strides(config)[3], "embedding": embedding}
    taken = keyword_options(entry.build)
    options |= {name: given[name] for name in GIVEN_BY_MODEL if name in taken}
    return entry.build(list(channels), num_classes, section["proj_dim"] or entry.proj_dim, **options)


def build_model(
    config: Any,
    num_classes: int,
    *,
    embedding: bool,
    auxiliary: bool = False,
    notify: Notify = lambda event: None,
) -> SegmentationModel:
    """Assemble backbone, head and, if asked, the auxiliary head on C3 that helps in training.

    `notify` is as for `create_backbone`.
    """
    from seghiero_core.model.segmentation import AuxiliaryHead, SegmentationModel

    channels = get_backbone_channels(config)
    mean, std = get_statistics(config)
    return SegmentationModel(
        create_backbone(config, notify),
        create_head(config, channels, num_classes, embedding=embedding),
        mean=mean,
        std=std,
        stride=get_backbone_strides(config)[3],
        auxiliary=AuxiliaryHead(channels[2], num_classes) if auxiliary else None,
    )


def build_trained_model(config: Any, num_classes: int, tensors: Mapping[str, Tensor]) -> SegmentationModel:
    """The network of `config` with the weights of a checkpoint, in eval mode and as inference needs it.

    That is without embedding and auxiliary head, whose tensors are left out. Published weights are not looked for, so
    that the network (in the other sense) is never touched. Raises CheckpointError for a key that is missing or unknown.
    """
    backbone = {**_section(config, "backbone"), "pretrained": False}
    model = build_model({"backbone": backbone, "head": _section(config, "head")}, num_classes, embedding=False)
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
    """The section of a config, its defaults filled in."""
    if not isinstance(config, Mapping):
        return getattr(config, name).model_dump()
    try:
        return type(Config.model_fields[name].default).model_validate(config.get(name, {})).model_dump()
    except ValidationError as error:
        raise UsageError(f"{name}: {error.errors()[0]['msg']}") from None


def _variant(entry: BackboneEntry, section: Mapping[str, Any]) -> str:
    return entry.check_variant(section.get(entry.selector, entry.default))


def _options(entry: BackboneEntry | HeadEntry, section: Mapping[str, Any], fixed: set[str]) -> dict[str, Any]:
    options = {key: value for key, value in section.items() if key not in fixed}
    for key in options:
        if key not in entry.options:
            known = sorted({*fixed, *entry.options})
            raise UsageError(f"{key}: unknown key for {entry.name}.{nearest(key, known)} Known: {', '.join(known)}.")
    return options
