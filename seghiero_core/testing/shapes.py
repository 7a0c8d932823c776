"""Compare the shapes of a backbone's features with its registration and explain differences stage by stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from seghiero_core.model.factories import create_backbone, create_head, get_backbone_channels, get_backbone_strides
from seghiero_core.registry import BACKBONES, HEADS

STRIDES = (4, 8, 16, 32)
"""Strides of C1 to C4 in px."""

VERIFY_SIZE = (224, 320)
"""H,W in px of the image that `verify_backbone` uses."""

NUM_CLASSES = 5
"""Classes of the heads that the suite builds."""


@dataclass(frozen=True)
class BackboneReport:
    """Result of `verify_backbone`.

    Attributes:
        name: The backbone's type.
        variant: The verified variant.
        expected: Shape of each stage according to the registration: (1, channels, height, width).
        found: Shape of each stage that the network returned; empty if it failed or didn't return tensors.
        problems: One sentence per problem; empty if the backbone passes.
        heads: For each registered head, None if it accepts the features, else the error it raised.
    """

    name: str
    variant: str
    expected: tuple[tuple[int, ...], ...]
    found: tuple[tuple[int, ...], ...]
    problems: tuple[str, ...]
    heads: dict[str, str | None]

    @property
    def ok(self) -> bool:
        """Whether there are no problems and every head accepts the features."""
        return not self.problems and not any(self.heads.values())


def verify_backbone(name: str, variant: str | None = None, **options: Any) -> BackboneReport:
    """Run a backbone on the meta device and compare its features with its registration.

    The meta device needs no memory and does no arithmetic, so this is fast even for a large network. Problems of the
    network itself are in the report, not raised.

    Args:
        name: The backbone's type.
        variant: The variant to verify; None for the default one.
        **options: Further keys of the backbone's YAML section.

    Returns:
        The expected and the actual shapes, the problems, and which heads accept the features.

    Raises:
        UsageError: If the name, the variant or an option is unknown.

    Example:
        >>> report = verify_backbone("resnet", "18")
        >>> report.ok, report.problems
        (True, ())
        >>> report.found
        ((1, 64, 56, 80), (1, 128, 28, 40), (1, 256, 14, 20), (1, 512, 7, 10))
    """
    config = backbone_config(name, variant)
    config["backbone"] |= options
    selected = config["backbone"][BACKBONES.get(name).selector]
    channels = get_backbone_channels(config)
    height, width = VERIFY_SIZE
    strides = get_backbone_strides(config)
    expected = tuple((1, c, height // s, width // s) for c, s in zip(channels, strides, strict=True))
    try:
        with torch.device("meta"):
            features = create_backbone(config).eval()(torch.empty(1, 3, height, width))
    except Exception as error:
        problem = f"building or running the network failed: {describe_error(error)}"
        return BackboneReport(name, selected, expected, (), (problem,), {})
    problems = list(feature_problems(features, channels, VERIFY_SIZE, strides))
    found = tuple(tuple(f.shape) for f in features) if _is_list_of_tensors(features) else ()
    heads: dict[str, str | None] = {}
    for head in HEADS.names():
        try:
            with torch.device("meta"):
                create_head({"head": {"type": head}}, channels, NUM_CLASSES).eval()(features)
            heads[head] = None
        except Exception as error:
            heads[head] = describe_error(error)
    return BackboneReport(name, selected, expected, found, tuple(problems), heads)


def feature_problems(
    features: Any, channels: Sequence[int], size: tuple[int, int], strides: Sequence[int] = STRIDES
) -> Iterator[str]:
    """Find what is wrong with the output of a backbone.

    Args:
        features: What the backbone returned.
        channels: Expected channels of C1 to C4.
        size: H,W in px of the image.
        strides: Expected strides of C1 to C4 in px.

    Yields:
        One sentence per problem.
    """
    if not _is_list_of_tensors(features):
        yield f"forward returns {type(features).__name__}, expected a list of four tensors [C1, C2, C3, C4]"
        return
    if len(features) != 4:
        yield f"forward returns {len(features)} feature maps, expected 4: [C1, C2, C3, C4]"
        return
    for number, (feature, width, stride) in enumerate(zip(features, channels, strides, strict=True), start=1):
        yield from _stage_problems(f"C{number}", tuple(feature.shape), width, size, stride)


def _stage_problems(
    stage: str, shape: tuple[int, ...], channels: int, size: tuple[int, int], stride: int
) -> Iterator[str]:
    if len(shape) != 4:
        height, width = _rounded_up(size, stride)
        yield f"{stage} has shape {shape}, expected B,{channels},H,W with H,W about {height},{width}"
        return
    if shape[3] == channels and shape[1] != channels and _has_stride(shape[1:3], size, stride):
        yield f"{stage} is channels-last (B,H,W,C = {shape}): return it with .permute(0, 3, 1, 2)"
        return
    if shape[1] != channels:
        yield f"{stage} has {shape[1]} channels, but it is registered with {channels}"
    if not _has_stride(shape[2:], size, stride):
        found = sorted({round(size[0] / max(shape[2], 1)), round(size[1] / max(shape[3], 1))})
        yield (
            f"{stage} has stride {' and '.join(map(str, found))}, expected {stride} (its size is "
            f"{shape[2]}x{shape[3]} for an image of {size[0]}x{size[1]})"
        )


def _has_stride(found: Sequence[int], size: tuple[int, int], stride: int) -> bool:
    """Return whether a feature map's H,W are those of the image divided by the stride, rounded down or up."""
    largest = _rounded_up(size, stride)
    return all(n // stride <= f <= most for f, n, most in zip(found, size, largest, strict=True))


def _rounded_up(size: tuple[int, int], stride: int) -> tuple[int, int]:
    return -(-size[0] // stride), -(-size[1] // stride)


def backbone_config(name: str, variant: str | None) -> dict[str, Any]:
    """Return a config with only a `backbone` section.

    Args:
        name: The backbone's type.
        variant: Its variant; None for the default one.

    Returns:
        A dict that the factories accept.
    """
    entry = BACKBONES.get(name)
    return {"backbone": {"type": name, entry.selector: str(variant or entry.default)}}


def _is_list_of_tensors(features: Any) -> bool:
    return isinstance(features, list | tuple) and all(isinstance(f, torch.Tensor) for f in features)


def describe_error(error: Exception) -> str:
    """Describe an error in one line.

    Args:
        error: The error.

    Returns:
        Its class and the first line of its message.
    """
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
