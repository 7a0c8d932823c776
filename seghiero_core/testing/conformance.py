"""The conformance suite: what every backbone and head must do, built-in or not, told in its author's terms.

`verify_backbone` builds nothing for real (meta device) and explains what is wrong, stage by stage. `check_backbone` and
`check_head` build, run, train and export the component, and raise CheckFailed with every fault found. A test of a
component is one line: `check_backbone("mynet")`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from seghiero_core.errors import CheckFailed
from seghiero_core.model.factories import build_model, create_backbone, create_head, get_backbone_channels
from seghiero_core.model.segmentation import SegmentationModel
from seghiero_core.registry import BACKBONES, HEADS, IMAGENET, BackboneEntry
from seghiero_core.testing.behaviour import (
    ODD_SIZES,
    Pyramid,
    attempt,
    onnx_problems,
    state_problems,
    training_problems,
)
from seghiero_core.testing.shapes import (
    NUM_CLASSES,
    STRIDES,
    BackboneReport,
    config_of,
    feature_problems,
    verify_backbone,
)

__all__ = ["BackboneReport", "check_backbone", "check_head", "verify_backbone"]


def check_backbone(name: str, variant: str | None = None) -> None:
    """Raise CheckFailed unless a backbone does all that the rest of the toolkit relies on.

    Declared channels and strides against a real forward at odd sizes, batches of one, a gradient for every parameter
    with every head, bf16 autocast, a state dict that round-trips through safetensors, pickling, and ONNX with free
    sizes. A small variant is enough: sizes of one family share their code. Without `variant` the narrowest is taken.
    """
    variant = variant or _narrowest(BACKBONES.get(name))
    report = verify_backbone(name, variant)
    heads = _sound_heads()
    problems = [*report.problems, *(f"head {h} refuses it: {report.heads[h]}" for h in heads if report.heads.get(h))]
    if not problems:
        config = config_of(name, variant)
        torch.manual_seed(0)
        backbone = create_backbone(config).eval()
        channels = get_backbone_channels(config)
        for size in ODD_SIZES:
            with torch.no_grad():
                features = attempt(problems, f"an input of 1x3x{size[0]}x{size[1]}", backbone, torch.randn(1, 3, *size))
            problems += [] if features is None else feature_problems(features, channels, size)
        for head in heads:
            problems += training_problems({**config, "head": {"type": head}}, embedding=False)
        config["head"] = {"type": min(heads, key=lambda head: HEADS.get(head).proj_dim)}
        problems += training_problems(config, embedding=True, bf16=True)
        model = build_model(config, NUM_CLASSES, embedding=False)
        problems += state_problems(model, build_model(config, NUM_CLASSES, embedding=False))
        problems += onnx_problems(model)
    _raise("backbone", f"{name} ({variant})", problems)


def check_head(name: str) -> None:
    """Raise CheckFailed unless a head does all that the rest of the toolkit relies on, on every backbone family.

    Logits at C1's size for odd sizes, embeddings of unit length and `proj_dim` channels, none and no idle parameters
    with `embedding=False`, then the same demands on training, state, pickling and ONNX as for a backbone.
    """
    problems: list[str] = []
    torch.manual_seed(0)
    config: dict[str, Any] = {"head": {"type": name}}
    channels = (24, 32, 48, 64)
    proj_dim = HEADS.get(name).proj_dim
    head = create_head(config, channels, NUM_CLASSES).eval()
    for height, width in ODD_SIZES:
        features = [torch.randn(1, c, -(-height // s), -(-width // s)) for c, s in zip(channels, STRIDES, strict=True)]
        with torch.no_grad():
            output = attempt(problems, f"features of a {height}x{width} image", head, features)
        if output is not None:
            problems += _head_problems(output, (1, NUM_CLASSES, *features[0].shape[2:]), proj_dim)
    without = create_head(config, channels, NUM_CLASSES, embedding=False).eval()
    output = attempt(problems, "forward without the embedding", without, features)
    if isinstance(output, tuple) and output[-1] is not None:
        problems.append("with embedding=False it gives an embedding still: take the keyword `embedding` and obey it")
    if problems:
        _raise("head", name, problems)
    for family in _sound_backbones():
        pair = {**config_of(family, _narrowest(BACKBONES.get(family))), **config}
        problems += training_problems(pair, embedding=True)
    problems += training_problems(pair, embedding=False, bf16=True)
    mean, std = IMAGENET
    heads = [create_head(config, channels, NUM_CLASSES) for _ in range(2)]
    models = [SegmentationModel(Pyramid(channels), head, mean=mean, std=std, stride=32) for head in heads]
    problems += state_problems(*models)
    problems += onnx_problems(models[0])
    _raise("head", name, problems)


def _head_problems(output: Any, logits_shape: tuple[int, ...], proj_dim: int) -> Iterator[str]:
    if not isinstance(output, tuple) or len(output) != 2:
        yield f"forward gives {type(output).__name__}, expected the pair (logits, embedding)"
        return
    logits, embedding = output
    if tuple(logits.shape) != logits_shape:
        yield f"logits have shape {tuple(logits.shape)}, expected {logits_shape}: B,num_classes at C1's size"
    if embedding is None or embedding.dim() != 4 or embedding.shape[1] != proj_dim:
        found = None if embedding is None else tuple(embedding.shape)
        yield f"the embedding is {found}, expected B,{proj_dim},h,w"
    elif (embedding.norm(dim=1) - 1).abs().max() > 1e-3:
        yield "the embedding's vectors have other lengths than 1 along the channels: use F.normalize(x, dim=1)"


# A component is not to blame for another's faults, which may be a plugin that someone is in the middle of writing.
def _sound_heads() -> list[str]:
    return [head for head, why in verify_backbone("resnet", "18").heads.items() if why is None]


def _sound_backbones() -> list[str]:
    return [name for name in BACKBONES.names() if not verify_backbone(name, _narrowest(BACKBONES.get(name))).problems]


def _narrowest(entry: BackboneEntry) -> str:
    return min(entry.variants, key=lambda variant: sum(entry.variants[variant]))


def _raise(kind: str, name: str, problems: Sequence[str]) -> None:
    if problems:
        raise CheckFailed(f"{kind} {name}:\n" + "\n".join(f"- {problem}" for problem in dict.fromkeys(problems)))
