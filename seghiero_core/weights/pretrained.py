"""Load pretrained weights into a backbone, validated and with a report.

If the weights can't be loaded, an error is raised; a backbone never keeps random weights silently.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seghiero_core.errors import WeightsError, nearest, shorten
from seghiero_core.events import Notify, ignore_events
from seghiero_core.registry import NECK, BackboneEntry, Statistics
from seghiero_core.weights.files import checkpoint_folder, read_statistics, read_weights
from seghiero_core.weights.hub import fetch_file, hub_repository
from seghiero_core.weights.key_translation import Translated, translate

if TYPE_CHECKING:
    from torch import Tensor, nn

MIN_COVERAGE = 0.95
"""Fraction of a backbone's parameters that a file must contain to count as its weights."""


@dataclass(frozen=True)
class WeightsReport:
    """Which tensors were loaded, and which were not.

    Attributes:
        source: The published tag or the path.
        layout: The key layout of the file.
        coverage: Fraction (0..1) of the backbone's parameters that were loaded.
        loaded: Names in the network.
        missing: Names in the network that the source lacks; they keep their random initial values.
        unexpected: Keys of the source that the network has no place for.
        reshaped: Keys of the source whose tensors were split, or reshaped by dimensions of size 1.
        classes_dropped: For a whole model: classes of the source that the network lacks.
        classes_new: For a whole model: classes of the network that the source lacks; their rows are random.
    """

    source: str
    layout: str
    coverage: float
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[str, ...]
    classes_dropped: tuple[str, ...] = ()
    classes_new: tuple[str, ...] = ()

    def event(self) -> dict[str, Any]:
        """Return the report as an event.

        Returns:
            {"event": "weights"} with the attributes.
        """
        return {"event": "weights", **asdict(self)}


def resolve_tag(entry: BackboneEntry, variant: str, pretrained: bool | str) -> str | None:
    """Find the published tag that `backbone.pretrained` refers to.

    Args:
        entry: The backbone family.
        variant: One of its variants.
        pretrained: True (the default tag), False, a tag with or without the model's name, or a path.

    Returns:
        The full tag, or None for False and for an existing path.

    Raises:
        WeightsError: If `pretrained` is neither a tag of this variant nor an existing path, or is True although the
            variant has no published weights.
    """
    tags = entry.weights.get(variant, ())
    if pretrained is False:
        return None
    if pretrained is True:
        if not tags:
            raise WeightsError(
                f"backbone.pretrained: {entry.name} {variant} has no published weights. "
                "Give the path of a file, or set it to false."
            )
        return tags[0]
    matches = [tag for tag in tags if pretrained in (tag, tag.partition(".")[2])]
    if matches:
        return matches[0]
    if Path(pretrained).exists():
        return None
    raise WeightsError(
        f"backbone.pretrained: '{pretrained}' is neither a published tag of {entry.name} {variant} nor an existing "
        f"path (a relative path starts at the config's folder).{nearest(pretrained, tags)} "
        f"Known tags: {', '.join(tags) or 'none'}."
    )


def pretrained_statistics(entry: BackboneEntry, variant: str, pretrained: bool | str) -> Statistics:
    """Look up the mean and standard deviation that pretrained weights were trained with.

    Args:
        entry: The backbone family.
        variant: One of its variants.
        pretrained: As for `resolve_tag`.

    Returns:
        (mean, std), each three floats (R, G, B in 0..1): those of the tag or the path; else those of the variant's
        default tag for a path, and the family's for none.

    Raises:
        WeightsError: If `resolve_tag` raises it, or a file beside the weights can't be read.
    """
    tag = resolve_tag(entry, variant, pretrained)
    if tag is None and pretrained:
        if found := read_statistics(Path(str(pretrained))):
            return found
        tag = next(iter(entry.weights.get(variant, ())), None)
    return entry.tag_statistics.get(tag, entry.statistics) if tag else entry.statistics


def load_pretrained(
    backbone: nn.Module,
    entry: BackboneEntry,
    variant: str,
    pretrained: bool | str,
    notify: Notify = ignore_events,
) -> WeightsReport:
    """Load pretrained weights into a backbone.

    Args:
        backbone: The network to load into, in place. It is unchanged if an error is raised.
        entry: Its family.
        variant: Its variant.
        pretrained: True (the default tag), another published tag, or a path: a .safetensors or pickle file, a folder
            laid out like a hub repository, or a seghiero run or checkpoint.
        notify: Receives a "download" event for each downloaded file and a "weights" event with the report.

    Returns:
        Which tensors were loaded, and which were not.

    Raises:
        WeightsError: If the weights can't be downloaded or read, contain NaN or infinity, have other shapes, belong to
            another variant or cover less than 95% of the parameters.
    """
    tag = resolve_tag(entry, variant, pretrained)
    path = Path(str(pretrained)) if tag is None else fetch_file(hub_repository(tag), notify=notify)
    source = tag or str(path)
    backbone_name = f"{entry.name} {variant}"
    state: Mapping[str, Tensor] = read_weights(path)
    converts = hasattr(backbone, "convert_weights") and checkpoint_folder(path) is None
    if converts:
        state = _convert(backbone, state, source, backbone_name)
    report, translated = match_backbone(backbone, state, source, backbone_name)
    if converts and (layers := backbone.foreign_layers(translated.unmatched.values())):
        raise WeightsError(
            f"{source}: has layers that {backbone_name} lacks ({shorten(layers)}), so these are weights of another one."
        )
    if other := _find_deeper_variant(backbone, entry, variant, translated.unmatched.values()):
        raise WeightsError(f"{source}: these are weights of {entry.name} {other}, not of {backbone_name}.")
    backbone.load_state_dict({name: value for name, (_, value) in translated.tensors.items()}, strict=False)
    notify(report.event())
    return report


def _convert(backbone: nn.Module, state: Mapping[str, Tensor], source: str, backbone_name: str) -> Mapping[str, Tensor]:
    """Convert a file's tensors by the backbone's own method, which may fail at those of another network."""
    try:
        return backbone.convert_weights(state)
    except Exception as error:  # of any class
        reason = shorten(str(error).strip().splitlines()[:1]) or type(error).__name__
        raise WeightsError(
            f"{source}: can't be converted to weights of {backbone_name} ({type(error).__name__}: {reason}); these may "
            "be weights of another network."
        ) from None


def match_backbone(
    backbone: nn.Module, state: Mapping[str, Tensor], source: str, backbone_name: str
) -> tuple[WeightsReport, Translated]:
    """Match the tensors of a file to a backbone without loading them.

    Args:
        backbone: The network.
        state: The file's tensors, in any known layout.
        source: Where they come from, for messages.
        backbone_name: Type and variant of the backbone, for messages.

    Returns:
        The report, and the tensors under the backbone's names.

    Raises:
        WeightsError: If tensors contain NaN or infinity, have other shapes or cover less than 95% of the parameters.
    """
    own = backbone.state_dict()
    try:
        translated = translate(state, own)
    except WeightsError as error:
        raise WeightsError(f"{source}: {error}") from None
    for name, (key, value) in translated.tensors.items():
        validate_tensor(value, own[name], key, source, backbone_name)
    sizes = {name: p.numel() for name, p in backbone.named_parameters() if not name.startswith(NECK)}
    coverage = sum(size for name, size in sizes.items() if name in translated.tensors) / sum(sizes.values())
    # A file may lack BatchNorm's counters, which are never used.
    missing = tuple(n for n in own if n not in translated.tensors and not n.endswith("num_batches_tracked"))
    unmatched = tuple(translated.unmatched)
    if coverage < MIN_COVERAGE:
        raise WeightsError(
            f"{source}: contains only {coverage:.0%} of the parameters of {backbone_name} (at least {MIN_COVERAGE:.0%} "
            f"are needed), so these are weights of another network. Missing: {shorten(missing) or 'nothing'}. "
            f"Unmatched keys of the file: {shorten(unmatched) or 'none'}."
        )
    report = WeightsReport(
        source=source,
        layout=translated.layout,
        coverage=coverage,
        loaded=tuple(name for name in own if name in translated.tensors),
        missing=missing,
        unexpected=unmatched,
        reshaped=translated.reshaped,
    )
    return report, translated


def validate_tensor(value: Tensor, own: Tensor, key: str, source: str, network: str) -> None:
    """Check that a tensor of a file can be loaded into a network.

    Args:
        value: The file's tensor, any shape.
        own: The network's tensor, any shape.
        key: Key in the file, for messages.
        source: Where the file comes from, for messages.
        network: What the network is, for messages.

    Raises:
        WeightsError: If the shape or kind of number differs, or the tensor contains NaN or infinity.
    """
    import torch

    if value.shape != own.shape:
        raise WeightsError(f"{source}: '{key}' has shape {tuple(value.shape)}, {network} needs {tuple(own.shape)}.")
    if value.is_floating_point() != own.is_floating_point():
        raise WeightsError(f"{source}: '{key}' has type {value.dtype}, {network} needs {own.dtype}.")
    if value.is_floating_point() and not torch.isfinite(value).all():
        raise WeightsError(f"{source}: '{key}' contains NaN or infinity; the file is damaged, get a new copy of it.")


def _find_deeper_variant(
    backbone: nn.Module, entry: BackboneEntry, variant: str, unmatched: Iterable[str]
) -> str | None:
    """Return the other variant that has layers among the unmatched names, or None.

    A deeper variant's file has every tensor of a smaller one, in the same shapes, but with values for another network.
    """
    import torch

    stages = {key.partition(".")[0] for key in backbone.state_dict()}
    extra_layers = {name for name in unmatched if name.partition(".")[0] in stages}
    if not extra_layers:
        return None
    for other in entry.variants:
        if other != variant:
            with torch.device("meta"):
                if extra_layers & entry.build(other).state_dict().keys():
                    return other
    return None
