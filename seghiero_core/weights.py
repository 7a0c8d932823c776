"""Published weights: found in the cache or on the hub, or in a local file, checked, and loaded. Never random ones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seghiero_core.errors import WeightsError, nearest
from seghiero_core.registry import BackboneEntry

if TYPE_CHECKING:
    from torch import Tensor, nn

LEAST_COVERAGE = 0.95
"""Share of a backbone's parameters that a file must hold to count as its weights."""

# Keys of the hub's MiT files to those of transformers 5.
_RENAMED = [
    (r"^segformer\.", ""),
    (r"^encoder\.patch_embeddings\.(\d+)\.", r"stages.\1.patch_embeddings."),
    (r"^encoder\.block\.(\d+)\.", r"stages.\1.blocks."),
    (r"^encoder\.layer_norm\.(\d+)\.", r"stages.\1.layer_norm."),
    (r"\.attention\.self\.query\.", ".attention.q_proj."),
    (r"\.attention\.self\.key\.", ".attention.k_proj."),
    (r"\.attention\.self\.value\.", ".attention.v_proj."),
    (r"\.attention\.self\.sr\.", ".attention.sequence_reduction.sequence_reduction."),
    (r"\.attention\.self\.layer_norm\.", ".attention.sequence_reduction.layer_norm."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (r"\.mlp\.dense1\.", ".mlp.fc1."),
    (r"\.mlp\.dense2\.", ".mlp.fc2."),
    (r"\.layer_norm_1\.", ".layernorm_before."),
    (r"\.layer_norm_2\.", ".layernorm_after."),
]


@dataclass(frozen=True)
class WeightsReport:
    """What came of loading: where from, and the keys that were loaded, missing in the file, or not the backbone's."""

    source: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


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
        f"backbone.pretrained: '{pretrained}' is no published tag of {entry.name} {variant}, and no such file exists."
        f"{nearest(pretrained, tags)} Known tags: {', '.join(tags) or 'none'}."
    )


def load_pretrained(backbone: nn.Module, entry: BackboneEntry, variant: str, pretrained: bool | str) -> WeightsReport:
    """Load weights into `backbone`: the default tag (true), a published tag, or a .safetensors or .pth file.

    Raises WeightsError if they cannot be had, hold NaN or infinities, differ in shape, or cover under 95 % of the
    parameters. The backbone is unchanged then.
    """
    import torch

    tag = resolve_tag(entry, variant, pretrained)
    path = Path(str(pretrained)) if tag is None else _fetch(tag)
    state = {_renamed(key): value for key, value in _read(path).items()}
    own = backbone.state_dict()
    state = _aligned(state, own)
    loaded = {key: state[key] for key in own if key in state}
    for key, value in loaded.items():
        if value.shape != own[key].shape:
            raise WeightsError(
                f"{path}: '{key}' has shape {tuple(value.shape)}, {entry.name} {variant} needs {tuple(own[key].shape)}."
            )
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise WeightsError(f"{path}: '{key}' holds NaN or infinite values; the file is damaged.")
    sizes = {name: parameter.numel() for name, parameter in backbone.named_parameters()}
    covered = sum(size for name, size in sizes.items() if name in loaded) / sum(sizes.values())
    if covered < LEAST_COVERAGE:
        raise WeightsError(
            f"{path}: holds {covered:.0%} of the parameters of {entry.name} {variant}; these are not its weights."
        )
    backbone.load_state_dict(loaded, strict=False)
    return WeightsReport(
        source=tag or str(path),
        loaded=tuple(loaded),
        missing=tuple(key for key in own if key not in loaded),
        unexpected=tuple(key for key in state if key not in own),
    )


def _fetch(tag: str) -> Path:
    """Path of the weights file of `tag` in huggingface_hub's cache, downloaded if it isn't there."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repository = tag if "/" in tag else f"timm/{tag}"
    error: Exception | None = None
    for filename in ("model.safetensors", "pytorch_model.bin"):
        try:
            return Path(hf_hub_download(repository, filename))
        except LocalEntryNotFoundError as failed:  # not cached, and the hub was not reached
            error = failed
            break
        except EntryNotFoundError as failed:  # the repository has no such file: try the other
            error = failed
        except Exception as failed:
            error = failed
            break
    raise WeightsError(
        f"the weights of {repository} are neither in the cache nor could they be downloaded ({error}). Without "
        f"network, run `hf download {repository}` where there is one and copy the cache, or set "
        "backbone.pretrained to the path of a file, or to false to start from random weights."
    ) from error


def _read(path: Path) -> Mapping[str, Tensor]:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError) as error:
        raise WeightsError(f"{path}: cannot be read as weights ({error}).") from error
    except Exception as error:  # weights_only refuses what could run code with an error of pickle's
        raise WeightsError(f"{path}: holds more than tensors, so it is not opened ({error}).") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(f"{path}: is no state dict (a mapping from names to tensors).")
    return state


def _aligned(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """`state` under the names of `own`: without the prefix of a whole model in the file, and with that of a wrapper.

    A backbone that holds a published network as `self.net` has `net.stem.weight` where the file has `stem.weight`.
    """
    prefixes = {f"{key.partition('.')[0]}." for key in own}
    wrapper = prefixes.pop() if len(prefixes) == 1 else ""
    cuts = sorted({"", *(f"{key.partition('.')[0]}." for key in state)})
    named = ({added + key.removeprefix(cut): state[key] for key in state} for cut in cuts for added in ("", wrapper))
    return max(named, key=lambda names: len(names.keys() & own.keys()))


def _renamed(key: str) -> str:
    for pattern, replacement in _RENAMED:
        key = re.sub(pattern, replacement, key)
    return key
