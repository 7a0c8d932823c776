"""The conformance suite: check that a backbone or head, built-in or your own, does what seghiero relies on.

`verify_backbone` runs a backbone on the meta device and explains differences from its registration stage by stage.
`check_backbone` and `check_head` also train, save and export the component, and raise CheckFailed with every problem
they find. The test of a component is one line: `check_backbone("mynet")`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from seghiero_core.errors import CheckFailed
from seghiero_core.model.factories import build_model, create_backbone, create_head, get_backbone_channels
from seghiero_core.model.segmentation import SegmentationModel
from seghiero_core.registry import BACKBONES, HEADS, IMAGENET, BackboneEntry
from seghiero_core.testing.behavior import (
    ODD_SIZES,
    Pyramid,
    attempt,
    onnx_problems,
    state_problems,
    training_problems,
)
from seghiero_core.testing.head_loss import head_loss_problems
from seghiero_core.testing.shapes import (
    NUM_CLASSES,
    STRIDES,
    BackboneReport,
    backbone_config,
    feature_problems,
    verify_backbone,
)

__all__ = ["BackboneReport", "check_backbone", "check_head", "verify_backbone"]


def check_backbone(name: str, variant: str | None = None) -> None:
    """Check that a backbone does everything that the rest of seghiero relies on.

    This covers the registered channels and strides at odd image sizes, batches of one image, a gradient for every
    parameter with every head, bf16 autocast, a state dict that survives safetensors, pickling, and ONNX export with a
    free image size. One small variant is usually enough, because the variants of a family share their code.

    Args:
        name: The backbone's type.
        variant: The variant to check; None for the narrowest one.

    Raises:
        CheckFailed: If there are problems; the message lists all of them.
        UsageError: If the name or the variant is unknown.

    Example:
        A test of your own backbone::

            from seghiero_core.testing import check_backbone

            def test_mynet():
                check_backbone("mynet")
    """
    variant = variant or _narrowest(BACKBONES.get(name))
    report = verify_backbone(name, variant)
    heads = _working_heads()
    problems = list(report.problems)
    problems += [f"the head {head} rejects it: {report.heads[head]}" for head in heads if report.heads.get(head)]
    if not problems:
        config = backbone_config(name, variant)
        torch.manual_seed(0)
        backbone = create_backbone(config).eval()
        channels = get_backbone_channels(config)
        for size in ODD_SIZES:
            with torch.no_grad():
                features = attempt(problems, f"an input of 1x3x{size[0]}x{size[1]}", backbone, torch.randn(1, 3, *size))
            if features is not None:
                problems += feature_problems(features, channels, size)
        for head in heads:
            problems += training_problems({**config, "head": {"type": head}}, embedding=False)
        config["head"] = {"type": min(heads, key=lambda head: HEADS.get(head).proj_dim)}
        problems += training_problems(config, embedding=True, bf16=True)
        model = build_model(config, NUM_CLASSES, embedding=False)
        problems += state_problems(model, build_model(config, NUM_CLASSES, embedding=False))
        problems += onnx_problems(model)
    _raise_if_any("backbone", f"{name} ({variant})", problems)


def check_head(name: str) -> None:
    """Check that a head does everything that the rest of seghiero relies on, with every family of backbones.

    This covers logits at C1's size for odd image sizes, an embedding with `proj_dim` channels and unit length, no
    embedding and no unused parameters with `embedding=False`, and the same training, saving, pickling and ONNX export
    as for a backbone. Of a head with a loss of its own, it covers that each term is finite and has a gradient, that
    ignored pixels cost nothing, and that the batches of a step add up.

    Args:
        name: The head's type.

    Raises:
        CheckFailed: If there are problems; the message lists all of them.
        UsageError: If the name is unknown.

    Example:
        A test of your own head::

            from seghiero_core.testing import check_head

            def test_myhead():
                check_head("myhead")
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
            output = attempt(problems, f"forward on the features of a {height}x{width} image", head, features)
        if output is not None:
            problems += _head_problems(output, (1, NUM_CLASSES, *features[0].shape[2:]), proj_dim)
    without = create_head(config, channels, NUM_CLASSES, embedding=False).eval()
    output = attempt(problems, "forward without the embedding", without, features)
    if isinstance(output, tuple) and output[1] is not None:
        problems.append(
            "with embedding=False it still returns an embedding: add the keyword-only parameter `embedding` to the "
            "builder and return None if it is false"
        )
    _raise_if_any("head", name, problems)
    problems += head_loss_problems(without, [torch.cat([f, torch.randn_like(f)]) for f in features])
    for family in _working_backbones():
        pair = {**backbone_config(family, _narrowest(BACKBONES.get(family))), **config}
        problems += training_problems(pair, embedding=True)
    problems += training_problems(pair, embedding=False, bf16=True)
    mean, std = IMAGENET
    heads = [create_head(config, channels, NUM_CLASSES) for _ in range(2)]
    models = [SegmentationModel(Pyramid(channels), head, mean=mean, std=std, stride=32) for head in heads]
    problems += state_problems(*models)
    problems += onnx_problems(models[0])
    _raise_if_any("head", name, problems)


def _head_problems(output: Any, logits_shape: tuple[int, ...], proj_dim: int) -> Iterator[str]:
    if isinstance(output, tuple) and len(output) == 3:
        yield "in eval mode it returns a third value: return further outputs only if self.training"
        return
    if not isinstance(output, tuple) or len(output) != 2:
        yield f"forward returns {type(output).__name__}, expected the pair (logits, embedding)"
        return
    logits, embedding = output
    if tuple(logits.shape) != logits_shape:
        yield f"the logits have shape {tuple(logits.shape)}, expected {logits_shape}: B,num_classes at C1's size"
    if embedding is None:
        yield f"the embedding is None, expected B,{proj_dim},h,w"
    elif embedding.dim() != 4 or embedding.shape[1] != proj_dim:
        yield f"the embedding has shape {tuple(embedding.shape)}, expected B,{proj_dim},h,w"
    elif (embedding.norm(dim=1) - 1).abs().max() > 1e-3:
        yield "the embedding does not have unit length along the channels: use F.normalize(x, dim=1)"


def _working_heads() -> list[str]:
    """Return the heads that work with a built-in backbone.

    A backbone is not to blame for the faults of a head, which may be an unfinished plugin.
    """
    return [head for head, error in verify_backbone("resnet", "18").heads.items() if error is None]


def _working_backbones() -> list[str]:
    """Return the backbones without problems of their own."""
    return [name for name in BACKBONES.names() if not verify_backbone(name, _narrowest(BACKBONES.get(name))).problems]


def _narrowest(entry: BackboneEntry) -> str:
    """Return the variant with the fewest channels, or the default where variants aren't listed."""
    return min(entry.variants, key=lambda variant: sum(entry.variants[variant]), default=entry.default)


def _raise_if_any(kind: str, name: str, problems: Sequence[str]) -> None:
    """Raise CheckFailed with all problems, each once, if there are any."""
    if problems:
        raise CheckFailed(f"{kind} {name}:\n" + "\n".join(f"- {problem}" for problem in dict.fromkeys(problems)))
