"""Published models that can be wrapped as backbones: read from timm or transformers and checked by a forward pass.

Only the config of a hub model of transformers is downloaded. Networks are built on the meta device, which has shapes
but no values, so even a large one needs little memory and time.
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

_STRIDES = (4, 8, 16, 32)
_ODD_SIZE = (97, 131)  # H,W in px; no stride divides it
_EVEN_SIZE = (224, 160)  # H,W in px; every stride divides it

# Entries of a transformers config that don't affect the network.
_IGNORED_ENTRIES = (
    *("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "id2label", "label2id"),
    *("num_labels", "problem_type", "out_features", "out_indices", "_out_features", "_out_indices", "stage_names"),
)


@dataclass(frozen=True)
class SourceModel:
    """A published model with four stages.

    Attributes:
        library: "timm" or "hf".
        title: Its name and library, as shown to users.
        model: What builds it: its name in timm, or the entries of its transformers config.
        channels: Channels of C1 to C4.
        stages: The library's indices or names of C1 to C4.
        unused: Modules that none of the four stages needs.
        tag: Where its weights are published, as in `BackboneEntry.weights`; None for a local config.
        statistics: Mean and standard deviation (R, G, B in 0..1) of its inputs.
    """

    library: str
    title: str
    model: str | dict[str, Any]
    channels: Channels
    stages: tuple[int, ...] | tuple[str, ...]
    unused: tuple[str, ...]
    tag: str | None
    statistics: Statistics = IMAGENET


def read_source_model(source: str) -> SourceModel:
    """Read a published model and check that it can be a backbone.

    Args:
        source: `timm:MODEL` or `hf:CONFIG`, where CONFIG is a hub name or a local folder.

    Returns:
        The model.

    Raises:
        UsageError: If there is no such model, or it can't be a backbone.
        WeightsError: If the config of a hub model can't be downloaded.
    """
    library, _, name = source.partition(":")
    if library not in ("timm", "hf") or not name:
        raise UsageError(f"--from {source}: expected timm:MODEL or hf:CONFIG, for example timm:mobilenetv3_large_100.")
    return _read_timm(source, name) if library == "timm" else _read_hf(source, name)


def _read_timm(source: str, name: str) -> SourceModel:
    import timm

    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        raise UsageError(f"--from {source}: unknown timm model.{nearest(architecture, timm.list_models())}")
    if name != architecture and name not in (tags := timm.list_pretrained(f"{architecture}.*")):
        raise UsageError(
            f"--from {source}: unknown weights of this timm model.{nearest(name, tags)} Known: {', '.join(tags)}."
        )

    net = _build_on_meta(lambda: timm.create_model(architecture, num_classes=0))
    stages = _select_stages(source, [stage["reduction"] for stage in getattr(net, "feature_info", [])])
    if not hasattr(net, "forward_intermediates"):
        raise UsageError(f"--from {source}: timm can't return the intermediate features of this model.")
    net.prune_intermediate_layers(stages, prune_head=True)
    channels, unused = _check_features(
        source, net, lambda x: net.forward_intermediates(x, indices=stages, intermediates_only=True)
    )
    pretrained = timm.get_pretrained_cfg(name)
    return SourceModel(
        library="timm",
        title=f"{name} from timm",
        model=architecture,
        channels=channels,
        stages=stages,
        unused=unused,
        tag=f"{architecture}.{pretrained.tag}" if pretrained.hf_hub_id else None,
        statistics=(tuple(pretrained.mean), tuple(pretrained.std)),
    )


def _read_hf(source: str, name: str) -> SourceModel:
    from transformers import AutoBackbone, AutoConfig

    local = Path(name).is_dir()
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if local:
            raise UsageError(
                f"--from {source}: this folder has no transformers config ({_first_line(error)})."
            ) from None
        raise WeightsError(
            f"--from {source}: the config is not in the cache and could not be downloaded ({_first_line(error)}). "
            "Give the path of a folder with its config.json instead."
        ) from None
    entries = {key: value for key, value in config.to_diff_dict().items() if key not in _IGNORED_ENTRIES}

    def build(stages: Sequence[str]) -> nn.Module:
        stages_config = AutoConfig.for_model(**entries)
        stages_config.out_features = list(stages)
        return AutoBackbone.from_config(stages_config)

    names = list(getattr(config, "stage_names", ()))
    try:
        net = _build_on_meta(lambda: build(names))
    except (ValueError, ImportError, KeyError) as error:
        raise UsageError(
            f"--from {source}: transformers has no backbone for the model type '{config.model_type}' "
            f"({_first_line(error)})."
        ) from None
    maps = _forward(source, lambda x: net(x).feature_maps, _EVEN_SIZE)
    stages = tuple(names[i] for i in _select_stages(source, [_EVEN_SIZE[0] // m.shape[2] for m in maps]))
    net = _build_on_meta(lambda: build(stages))
    channels, unused = _check_features(source, net, lambda x: net(x).feature_maps)
    return SourceModel(
        library="hf",
        title=f"{Path(name).name if local else name} from transformers",
        model=entries,
        channels=channels,
        stages=stages,
        unused=unused,
        tag=None if local else name,
    )


def _build_on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    import torch

    with torch.device("meta"):
        return build().eval()


def _select_stages(source: str, strides: Sequence[int]) -> tuple[int, ...]:
    """Return, for each of the four strides, the index of the last feature map that has it."""
    if missing := [stride for stride in _STRIDES if stride not in strides]:
        found = ", ".join(map(str, dict.fromkeys(strides))) or "unknown"
        raise UsageError(
            f"--from {source}: its features have strides {found}; a backbone needs 4, 8, 16 and 32 "
            f"(missing: {', '.join(map(str, missing))}). "
            "Choose a model with four scales, like a ResNet, ConvNeXt, EfficientNet or Swin."
        )
    return tuple(max(i for i, found in enumerate(strides) if found == stride) for stride in _STRIDES)


def _forward(source: str, forward: Callable[[torch.Tensor], Sequence[torch.Tensor]], size: tuple[int, int]):
    import torch

    try:
        return forward(torch.zeros(2, 3, *size, device="meta"))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UsageError(
            f"--from {source}: the model fails on an image of {size[0]}x{size[1]} px ({_first_line(error)}); "
            "a backbone must accept any size."
        ) from None


def _check_features(source: str, net: nn.Module, forward: Callable) -> tuple[Channels, tuple[str, ...]]:
    """Return the channels of C1 to C4 in a forward pass, and the modules that get no gradient from them."""
    import torch
    from torch import nn

    for height, width in (_ODD_SIZE, _EVEN_SIZE):
        maps = _forward(source, forward, (height, width))
        for i, (features, stride) in enumerate(zip(maps, _STRIDES, strict=True), start=1):
            found = tuple(features.shape[2:])
            if abs(found[0] - height / stride) >= 1 or abs(found[1] - width / stride) >= 1:
                raise UsageError(
                    f"--from {source}: C{i} of an image of {height}x{width} px has {found[0]}x{found[1]} px; at stride "
                    f"{stride} it should have about {height // stride}x{width // stride}."
                )
    names, parameters = zip(*net.named_parameters(), strict=True)
    gradients = torch.autograd.grad(sum(m.sum() for m in maps), parameters, allow_unused=True)
    used = [name for name, gradient in zip(names, gradients, strict=True) if gradient is not None]
    unused: list[str] = []
    for module in [name for name, _ in net.named_modules() if name]:
        has_parameters = any(_is_inside(name, [module]) for name in names)
        is_used = any(_is_inside(name, [module]) for name in used)
        if has_parameters and not is_used and not _is_inside(module, unused):
            unused.append(module)
            net.set_submodule(module, nn.Identity())
    if idle := [name for name in names if name not in used and not _is_inside(name, unused)]:
        raise UsageError(f"--from {source}: {', '.join(idle)} would get no gradient from the four stages.")
    if unused:
        _forward(source, forward, _ODD_SIZE)
    return tuple(m.shape[1] for m in maps), tuple(unused)


def _is_inside(name: str, modules: Sequence[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
