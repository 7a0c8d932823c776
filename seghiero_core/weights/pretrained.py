"""Published weights into a backbone: the right ones, checked, with a report; or an error. Never random ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seghiero_core.errors import WeightsError, nearest, shorten
from seghiero_core.events import Notify
from seghiero_core.registry import BackboneEntry, Statistics
from seghiero_core.weights.files import read_statistics, read_weights
from seghiero_core.weights.hub import fetch, hub_repository
from seghiero_core.weights.key_layouts import Translated, translate

if TYPE_CHECKING:
    from torch import Tensor, nn

LEAST_COVERAGE = 0.95
"""Share of a backbone's parameters that a file must hold to count as its weights."""


@dataclass(frozen=True)
class WeightsReport:
    """What came of loading.

    Attributes:
        source: the published tag or the path.
        layout: the naming scheme of the file.
        coverage: share of the parameters (0..1) that were loaded.
        loaded: names in the network.
        missing: names in the network that the source lacks; they keep their random start.
        unexpected: keys of the source that have no place in the network.
        reshaped: keys of the source whose tensors were cut or given other dimensions of size 1.
        classes_dropped: of a whole model: classes of the source that the network lacks.
        classes_new: of a whole model: classes of the network that the source lacks; they start at random.
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
        """The report as an event of `train`."""
        return {"event": "weights", **asdict(self)}


def resolve_tag(entry: BackboneEntry, variant: str, pretrained: bool | str) -> str | None:
    """The published tag that `pretrained` means (the default for true), or None for false and for a path.

    Raises WeightsError for a name that is neither a tag of this variant nor a file or folder.
    """
    tags = entry.weights.get(variant, ())
    if pretrained is False:
        return None
    if pretrained is True:
        if not tags:
            raise WeightsError(
                f"backbone.pretrained: no published weights are known for {entry.name} {variant}; "
                "give the path of a file, or false."
            )
        return tags[0]
    matches = [tag for tag in tags if pretrained in (tag, tag.partition(".")[2])]
    if matches:
        return matches[0]
    if Path(pretrained).exists():
        return None
    raise WeightsError(
        f"backbone.pretrained: '{pretrained}' is no published tag of {entry.name} {variant}, and no such file exists "
        f"(a relative path starts at the folder of the config).{nearest(pretrained, tags)} "
        f"Known tags: {', '.join(tags) or 'none'}."
    )


def pretrained_statistics(entry: BackboneEntry, variant: str, pretrained: bool | str) -> Statistics:
    """Mean and standard deviation (R, G, B in 0..1) that the weights which `pretrained` means were trained with."""
    tag = resolve_tag(entry, variant, pretrained)
    told = read_statistics(Path(str(pretrained))) if tag is None and pretrained else None
    return told or entry.tag_statistics.get(tag or "", entry.statistics)


def load_pretrained(
    backbone: nn.Module,
    entry: BackboneEntry,
    variant: str,
    pretrained: bool | str,
    notify: Notify = lambda event: None,
) -> WeightsReport:
    """Load weights into `backbone`: the default tag (true), another published tag, or those at a path.

    A path is a .safetensors or .pth file, a folder in the hub's layout, or a seghiero run or checkpoint. The report is
    also told as an event. Raises WeightsError if the weights cannot be had, hold NaN or infinities, differ in shape,
    belong to another variant or cover under 95 % of the parameters; the backbone is unchanged then.
    """
    tag = resolve_tag(entry, variant, pretrained)
    path = Path(str(pretrained)) if tag is None else fetch(hub_repository(tag), notify=notify)
    source = tag or str(path)
    what = f"{entry.name} {variant}"
    report, translated = match_backbone(backbone, read_weights(path), source, what)
    if other := _deeper_variant(backbone, entry, variant, translated.rest.values()):
        raise WeightsError(f"{source}: these are weights of {entry.name} {other}, not of {what}.")
    backbone.load_state_dict({name: value for name, (_, value) in translated.tensors.items()}, strict=False)
    notify(report.event())
    return report


def match_backbone(
    backbone: nn.Module, state: Mapping[str, Tensor], source: str, what: str
) -> tuple[WeightsReport, Translated]:
    """What of `state` fits `backbone`: a report, and the tensors. Loads nothing.

    `what` names the backbone in messages. Raises WeightsError as `load_pretrained` does.
    """
    own = backbone.state_dict()
    try:
        translated = translate(state, own)
    except WeightsError as error:
        raise WeightsError(f"{source}: {error}") from None
    for name, (key, value) in translated.tensors.items():
        check_tensor(value, own[name], key, source, what)
    sizes = {name: parameter.numel() for name, parameter in backbone.named_parameters()}
    covered = sum(size for name, size in sizes.items() if name in translated.tensors) / sum(sizes.values())
    # A file may lack BatchNorm's counters, which nothing here reads.
    missing = tuple(n for n in own if n not in translated.tensors and not n.endswith("num_batches_tracked"))
    if covered < LEAST_COVERAGE:
        raise WeightsError(
            f"{source}: holds {covered:.0%} of the parameters of {what} (at least {LEAST_COVERAGE:.0%} are needed), so "
            f"these are not its weights. Missing: {_few(missing)}. In the file instead: {_few(tuple(translated.rest))}."
        )
    report = WeightsReport(
        source=source,
        layout=translated.layout,
        coverage=covered,
        loaded=tuple(name for name in own if name in translated.tensors),
        missing=missing,
        unexpected=tuple(translated.rest),
        reshaped=translated.reshaped,
    )
    return report, translated


def check_tensor(value: Tensor, own: Tensor, key: str, source: str, what: str) -> None:
    """Raise WeightsError, naming `key`, where `value` cannot take the place of `own` or holds NaN or infinities."""
    import torch

    if value.shape != own.shape:
        raise WeightsError(f"{source}: '{key}' has shape {tuple(value.shape)}, {what} needs {tuple(own.shape)}.")
    if value.is_floating_point() != own.is_floating_point():
        raise WeightsError(f"{source}: '{key}' is of type {value.dtype}, {what} needs {own.dtype}.")
    if value.is_floating_point() and not torch.isfinite(value).all():
        raise WeightsError(f"{source}: '{key}' holds NaN or infinite values; the file is damaged, get it anew.")


def _deeper_variant(backbone: nn.Module, entry: BackboneEntry, variant: str, rest: Iterable[str]) -> str | None:
    """The other variant whose layers are among `rest`, the names that `backbone` does not have, or None.

    The file of a deeper variant holds all that a smaller one needs, in the same shapes, and means something else.
    """
    import torch

    inside = {key.partition(".")[0] for key in backbone.state_dict()}
    more = {name for name in rest if name.partition(".")[0] in inside}
    for other in entry.variants if more else ():
        if other != variant:
            with torch.device("meta"):
                if more & entry.build(other).state_dict().keys():
                    return other
    return None


def _few(names: tuple[str, ...]) -> str:
    return shorten(names) or "nothing"
