"""Published models as backbones: what timm or transformers says of one, checked by a forward pass without weights.

Nothing is downloaded but, for a hub name of transformers, its config. Networks are built on the meta device, which has
shapes and no values, so even a large one costs neither memory nor time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seghiero_core.errors import UsageError, WeightsError, nearest
from seghiero_core.registry import IMAGENET, Channels, Statistics

if TYPE_CHECKING:
    import torch
    from torch import nn

STRIDES = (4, 8, 16, 32)
SIZES = ((97, 131), (224, 160))  # H,W in px: one that no stride divides, one that all do

# Entries of a transformers config that don't shape the network.
_NOT_SHAPING = (
    *("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "id2label", "label2id"),
    *("num_labels", "problem_type", "out_features", "out_indices", "_out_features", "_out_indices", "stage_names"),
)


@dataclass(frozen=True)
class Published:
    """A model of `library` ("timm" or "hf") that gives four stages.

    `model` is what builds it: a name of timm, or the entries of a transformers config. `stages` are
    the library's indices or names of C1 to C4, `unused` the modules that none of them needs. `tag` is where its
    weights are published, as in `BackboneEntry.weights`, None for a local config.
    """

    library: str
    title: str
    model: str | dict[str, Any]
    channels: Channels
    stages: tuple[int, ...] | tuple[str, ...]
    unused: tuple[str, ...]
    tag: str | None
    statistics: Statistics = IMAGENET


def read_published(source: str) -> Published:
    """What `timm:MODEL` or `hf:CONFIG` (a hub name or a local folder) would be as a backbone.

    Raises UsageError where there is no such model or it can't be a backbone, WeightsError where the config of a hub
    name can't be had.
    """
    library, _, name = source.partition(":")
    if library not in ("timm", "hf") or not name:
        raise UsageError(f"--from {source}: expected timm:MODEL or hf:CONFIG, for example timm:mobilenetv3_large_100.")
    return _read_timm(source, name) if library == "timm" else _read_hf(source, name)


def _read_timm(source: str, name: str) -> Published:
    import timm

    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        raise UsageError(f"--from {source}: timm has no such model.{nearest(architecture, timm.list_models())}")
    if name != architecture and name not in (tags := timm.list_pretrained(f"{architecture}.*")):
        raise UsageError(f"--from {source}: timm has no such weights.{nearest(name, tags)} Known: {', '.join(tags)}.")

    net = _on_meta(lambda: timm.create_model(architecture, num_classes=0))
    stages = _at_strides(source, [stage["reduction"] for stage in getattr(net, "feature_info", [])])
    if not hasattr(net, "forward_intermediates"):
        raise UsageError(f"--from {source}: timm can't give the features of this model, only its classes.")
    net.prune_intermediate_layers(stages, prune_head=True)
    channels, unused = _checked(
        source, net, lambda x: net.forward_intermediates(x, indices=stages, intermediates_only=True)
    )
    published = timm.get_pretrained_cfg(name)
    return Published(
        library="timm",
        title=f"{name} of timm",
        model=architecture,
        channels=channels,
        stages=stages,
        unused=unused,
        tag=f"{architecture}.{published.tag}" if published.hf_hub_id else None,
        statistics=(tuple(published.mean), tuple(published.std)),
    )


def _read_hf(source: str, name: str) -> Published:
    from transformers import AutoBackbone, AutoConfig

    local = Path(name).is_dir()
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if local:
            raise UsageError(f"--from {source}: no config of transformers is there ({_first(error)}).") from None
        raise WeightsError(
            f"--from {source}: its config is neither in the cache nor could it be downloaded ({_first(error)}). "
            "Give the path of a folder that holds config.json."
        ) from None
    entries = {key: value for key, value in config.to_diff_dict().items() if key not in _NOT_SHAPING}

    def build(stages: Sequence[str]) -> nn.Module:
        given = AutoConfig.for_model(**entries)
        given.out_features = list(stages)
        return AutoBackbone.from_config(given)

    names = list(getattr(config, "stage_names", ()))
    try:
        net = _on_meta(lambda: build(names))
    except (ValueError, ImportError, KeyError) as error:
        raise UsageError(
            f"--from {source}: transformers has no backbone for the model type '{config.model_type}' ({_first(error)})."
        ) from None
    maps = _forward(source, lambda x: net(x).feature_maps, SIZES[1])
    stages = tuple(names[i] for i in _at_strides(source, [SIZES[1][0] // m.shape[2] for m in maps]))
    net = _on_meta(lambda: build(stages))
    channels, unused = _checked(source, net, lambda x: net(x).feature_maps)
    return Published(
        library="hf",
        title=f"{Path(name).name if local else name} of transformers",
        model=entries,
        channels=channels,
        stages=stages,
        unused=unused,
        tag=None if local else name,
    )


def _on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    import torch

    with torch.device("meta"):
        return build().eval()


def _at_strides(source: str, strides: Sequence[int]) -> tuple[int, ...]:
    """For each of STRIDES the index of the last map that has it."""
    if missing := [stride for stride in STRIDES if stride not in strides]:
        raise UsageError(
            f"--from {source}: its features have strides {', '.join(map(str, dict.fromkeys(strides))) or 'unknown'}; "
            f"a backbone needs 4, 8, 16 and 32, so {', '.join(map(str, missing))} is missing. "
            "Take a model with four scales (a ResNet, ConvNeXt, EfficientNet, Swin, ...), or write the layers between."
        )
    return tuple(max(i for i, found in enumerate(strides) if found == stride) for stride in STRIDES)


def _forward(source: str, forward: Callable[[torch.Tensor], Sequence[torch.Tensor]], size: tuple[int, int]):
    import torch

    try:
        return forward(torch.zeros(2, 3, *size, device="meta"))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UsageError(
            f"--from {source}: it can't take an image of {size[0]}x{size[1]} px ({_first(error)}); a backbone must."
        ) from None


def _checked(source: str, net: nn.Module, forward: Callable) -> tuple[Channels, tuple[str, ...]]:
    """Channels of C1 to C4 by a forward pass, and the modules that get no gradient in it. Raises UsageError."""
    import torch
    from torch import nn

    for height, width in SIZES:
        maps = _forward(source, forward, (height, width))
        for i, (features, stride) in enumerate(zip(maps, STRIDES, strict=True), 1):
            found = tuple(features.shape[2:])
            if abs(found[0] - height / stride) >= 1 or abs(found[1] - width / stride) >= 1:
                raise UsageError(
                    f"--from {source}: C{i} of an image of {height}x{width} px has {found[0]}x{found[1]} px; at stride "
                    f"{stride} about {height // stride}x{width // stride} are expected."
                )
    names, parameters = zip(*net.named_parameters(), strict=True)
    gradients = torch.autograd.grad(sum(m.sum() for m in maps), parameters, allow_unused=True)
    used = [name for name, gradient in zip(names, gradients, strict=True) if gradient is not None]
    unused: list[str] = []
    for name in [name for name, _ in net.named_modules()]:
        inside = [parameter for parameter in names if parameter.startswith(f"{name}.")]
        if name and inside and not any(u.startswith(f"{name}.") for u in used) and not _below(name, unused):
            unused.append(name)
            net.set_submodule(name, nn.Identity())
    if rest := [name for name in names if name not in used and not _below(name, unused)]:
        raise UsageError(f"--from {source}: {', '.join(rest)} would get no gradient from the four stages.")
    if unused:
        _forward(source, forward, SIZES[0])
    return tuple(m.shape[1] for m in maps), tuple(unused)


def _below(name: str, modules: Sequence[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)


def _first(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
