"""The names under which published ResNets, ConvNeXts and MiTs keep their tensors, and the way to ours.

Ours are timm's (which for ResNet are torchvision's and OpenMMLab's too) and those of transformers 5 for MiT. A whole
model's file has the backbone below a prefix (`backbone.`, `module.`, `visual.trunk.`, ...), which is found by counting
which one leaves the most names that the backbone has.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from seghiero_core.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

Rename = tuple[str, str | Callable[[re.Match[str]], str]]


@dataclass(frozen=True)
class Layout:
    """A naming scheme: `marker` is found in some key of it and in none of the others; `fused` are keys to split.

    A fused tensor is cut along its first dimension into as many parts as there are names.
    """

    name: str
    marker: str
    renames: tuple[Rename, ...]
    fused: tuple[tuple[str, tuple[str, ...]], ...] = ()


LAYOUTS = (
    Layout(
        "transformers 4 MiT",
        r"\bencoder\.block\.\d",
        (
            (r"\bencoder\.patch_embeddings\.(\d)\.", r"stages.\1.patch_embeddings."),
            (r"\bencoder\.block\.(\d)\.", r"stages.\1.blocks."),
            (r"\bencoder\.layer_norm\.(\d)\.", r"stages.\1.layer_norm."),
            (r"\.attention\.self\.query\.", ".attention.q_proj."),
            (r"\.attention\.self\.key\.", ".attention.k_proj."),
            (r"\.attention\.self\.value\.", ".attention.v_proj."),
            (r"\.attention\.self\.sr\.", ".attention.sequence_reduction.sequence_reduction."),
            (r"\.attention\.self\.layer_norm\.", ".attention.sequence_reduction.layer_norm."),
            (r"\.attention\.output\.dense\.", ".attention.o_proj."),
            (r"\.mlp\.dense([12])\.", r".mlp.fc\1."),
            (r"\.layer_norm_1\.", ".layernorm_before."),
            (r"\.layer_norm_2\.", ".layernorm_after."),
        ),
    ),
    Layout(
        "the SegFormer authors' MiT",
        r"\bpatch_embed\d\.",
        (
            (r"\bpatch_embed(\d)\.proj\.", lambda m: f"stages.{int(m[1]) - 1}.patch_embeddings.proj."),
            (r"\bpatch_embed(\d)\.norm\.", lambda m: f"stages.{int(m[1]) - 1}.patch_embeddings.layer_norm."),
            (r"\bblock(\d)\.(\d+)\.norm1\.", lambda m: f"stages.{int(m[1]) - 1}.blocks.{m[2]}.layernorm_before."),
            (r"\bblock(\d)\.(\d+)\.norm2\.", lambda m: f"stages.{int(m[1]) - 1}.blocks.{m[2]}.layernorm_after."),
            (r"\bblock(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.blocks."),
            (r"\bnorm(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.layer_norm."),
            (r"\.attn\.([qkv])\.", r".attention.\1_proj."),
            (r"\.attn\.proj\.", ".attention.o_proj."),
            (r"\.attn\.sr\.", ".attention.sequence_reduction.sequence_reduction."),
            (r"\.attn\.norm\.", ".attention.sequence_reduction.layer_norm."),
        ),
        ((".attn.kv.", (".attn.k.", ".attn.v.")),),
    ),
    Layout(
        "OpenMMLab MiT",
        r"\blayers\.\d\.0\.projection\.",
        (
            (r"\blayers\.(\d)\.0\.projection\.", r"stages.\1.patch_embeddings.proj."),
            (r"\blayers\.(\d)\.0\.norm\.", r"stages.\1.patch_embeddings.layer_norm."),
            (r"\blayers\.(\d)\.2\.", r"stages.\1.layer_norm."),
            (r"\.ffn\.layers\.0\.", ".mlp.fc1."),
            (r"\.ffn\.layers\.1\.", ".mlp.dwconv.dwconv."),
            (r"\.ffn\.layers\.4\.", ".mlp.fc2."),
            (r"\blayers\.(\d)\.1\.(\d+)\.", r"stages.\1.blocks.\2."),
            (r"\.norm1\.", ".layernorm_before."),
            (r"\.norm2\.", ".layernorm_after."),
            (r"\.attn\.attn\.([qkv])_", r".attention.\1_proj."),
            (r"\.attn\.attn\.out_proj\.", ".attention.o_proj."),
            (r"\.attn\.sr\.", ".attention.sequence_reduction.sequence_reduction."),
            (r"\.attn\.norm\.", ".attention.sequence_reduction.layer_norm."),
        ),
        ((".attn.attn.in_proj_", (".attn.attn.q_", ".attn.attn.k_", ".attn.attn.v_")),),
    ),
    Layout(
        "torchvision ConvNeXt",
        r"\bfeatures\.1\.0\.layer_scale",
        (
            (r"\bfeatures\.0\.", "stem."),
            (r"\bfeatures\.([246])\.([01])\.", lambda m: f"stages.{int(m[1]) // 2}.downsample.{m[2]}."),
            (r"\bfeatures\.([1357])\.(\d+)\.", lambda m: f"stages.{int(m[1]) // 2}.blocks.{m[2]}."),
            (r"\.block\.0\.", ".conv_dw."),
            (r"\.block\.2\.", ".norm."),
            (r"\.block\.3\.", ".mlp.fc1."),
            (r"\.block\.5\.", ".mlp.fc2."),
            (r"\.layer_scale$", ".gamma"),
        ),
    ),
    Layout(
        "the ConvNeXt authors' or OpenMMLab's",
        r"\bdownsample_layers\.\d",
        (
            (r"\bdownsample_layers\.0\.", "stem."),
            (r"\bdownsample_layers\.(\d)\.", r"stages.\1.downsample."),
            (r"\bstages\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
            (r"\.(dwconv|depthwise_conv)\.", ".conv_dw."),
            (r"\.(pwconv|pointwise_conv)([12])\.", r".mlp.fc\2."),
        ),
    ),
    Layout(
        "transformers ConvNeXt",
        r"\.layer_scale_parameter$",
        (
            (r"\bembeddings\.patch_embeddings\.", "stem.0."),
            (r"\bembeddings\.layernorm\.", "stem.1."),
            (r"\bencoder\.stages\.(\d)\.downsampling_layer\.", r"stages.\1.downsample."),
            (r"\bencoder\.stages\.(\d)\.layers\.", r"stages.\1.blocks."),
            (r"\.layer_scale_parameter$", ".gamma"),
            (r"\.dwconv\.", ".conv_dw."),
            (r"\.layernorm\.", ".norm."),
            (r"\.pwconv([12])\.", r".mlp.fc\1."),
        ),
    ),
    Layout(
        "transformers ResNet",
        r"\bembedder\.embedder\.convolution\.",
        (
            (r"\bembedder\.embedder\.convolution\.", "conv1."),
            (r"\bembedder\.embedder\.normalization\.", "bn1."),
            (r"\bencoder\.stages\.(\d)\.layers\.", lambda m: f"layer{int(m[1]) + 1}."),
            (r"\.layer\.(\d)\.convolution\.", lambda m: f".conv{int(m[1]) + 1}."),
            (r"\.layer\.(\d)\.normalization\.", lambda m: f".bn{int(m[1]) + 1}."),
            (r"\.shortcut\.convolution\.", ".downsample.0."),
            (r"\.shortcut\.normalization\.", ".downsample.1."),
        ),
    ),
)


@dataclass(frozen=True)
class Translated:
    """A file's tensors under a backbone's names.

    `tensors` maps each to (key in the file, tensor); `rest` maps the keys that fit no name to what they would be called
    here; `reshaped` has the keys whose tensors were cut or given other dimensions of size 1.
    """

    layout: str
    tensors: Mapping[str, tuple[str, Tensor]]
    rest: Mapping[str, str]
    reshaped: tuple[str, ...]


def translate(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Translated:
    """Give the tensors of `state` the names of `own`, and its shapes where they differ only in dimensions of size 1.

    Raises WeightsError where two networks in one file fit equally well.
    """
    found = [each for each in LAYOUTS if any(re.search(each.marker, key) for key in state)]
    # The file's own names come first: a plugin may wrap a network that has one of the layouts itself.
    choices = [_placed(layout, state, own, wrapper) for layout in (None, *found) for wrapper in _wrappers(own)]
    best = max(choices, key=lambda choice: choice.fits)
    if best.rival is not None and best.fits > len(own) / 2:
        raise WeightsError(
            f"the file holds two networks that fit, under '{best.prefix}' and '{best.rival}'; keep one of them."
        )
    tensors, rest, reshaped = {}, {}, []
    for key, split, name, tensor in best.parts:
        target = best.wrapper + name.removeprefix(best.prefix)
        if not name.startswith(best.prefix) or target not in own:
            rest[key] = name.removeprefix(best.prefix)
            continue
        shape = own[target].shape
        if tensor.shape != shape and [n for n in tensor.shape if n > 1] == [n for n in shape if n > 1]:
            tensor = tensor.reshape(shape)
            reshaped.append(key)
        elif split:
            reshaped.append(key)
        tensors[target] = (key, tensor)
    return Translated(best.layout, tensors, rest, tuple(dict.fromkeys(reshaped)))


@dataclass(frozen=True)
class _Placed:
    """A file read as `layout`: its parts (key, whether it was split, name here, tensor), and the `prefix` of `fits`
    many of them below which they have names of the network, less its `wrapper`; `rival` is a prefix that fits as many.
    """

    layout: str
    wrapper: str
    parts: Sequence[tuple[str, bool, str, Tensor]]
    prefix: str
    fits: int
    rival: str | None


def _wrappers(own: Mapping[str, Tensor]) -> list[str]:
    """ "" and, where all names have it, their first part: a network kept as `self.net` has `net.stem.weight` where the
    file has `stem.weight`.
    """
    first = {f"{key.partition('.')[0]}." for key in own}
    return ["", *first] if len(first) == 1 else [""]


def _placed(layout: Layout | None, state: Mapping[str, Tensor], own: Mapping[str, Tensor], wrapper: str) -> _Placed:
    parts = [(key, split, _renamed(name, layout), tensor) for key, split, name, tensor in _split(state, layout)]
    votes = Counter(
        name[:cut]
        for _, _, name, _ in parts
        for cut in [0, *(found.end() for found in list(re.finditer(r"\.", name))[:4])]
        if wrapper + name[cut:] in own
    )
    (prefix, fits), (rival, others) = [*votes.most_common(2), ("", 0), ("", 0)][:2]
    return _Placed(layout.name if layout else "own", wrapper, parts, prefix, fits, rival if others == fits else None)


def _split(state: Mapping[str, Tensor], layout: Layout | None) -> Iterable[tuple[str, bool, str, Tensor]]:
    """(key, whether it was split, name, tensor) of each tensor, several of a fused one."""
    for key, tensor in state.items():
        fused = next(((old, new) for old, new in (layout.fused if layout else ()) if old in key), None)
        if fused is None or tensor.ndim == 0 or len(tensor) % len(fused[1]):
            yield key, False, key, tensor
            continue
        for new, part in zip(fused[1], tensor.chunk(len(fused[1])), strict=True):
            yield key, True, key.replace(fused[0], new), part


def _renamed(name: str, layout: Layout | None) -> str:
    for pattern, replacement in layout.renames if layout else ():
        name = re.sub(pattern, replacement, name)
    return name
