"""Shapes of a backbone's features: what is registered against what it gives, told stage by stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from seghiero_core.model.factories import create_backbone, create_head, get_backbone_channels, get_backbone_strides
from seghiero_core.registry import BACKBONES, HEADS

STRIDES = (4, 8, 16, 32)
VERIFY_SIZE = (224, 320)
NUM_CLASSES = 5


@dataclass(frozen=True)
class BackboneReport:
    """What `verify_backbone` found.

    Attributes:
        expected, found: shape of each stage, (1, channels, height, width) for an input of VERIFY_SIZE; `found` holds
            what the network gave, whatever it is.
        problems: one sentence per fault; empty if all is well.
        heads: for each head, None if it accepts the features, else why not.
    """

    name: str
    variant: str
    expected: tuple[tuple[int, ...], ...]
    found: tuple[tuple[int, ...], ...]
    problems: tuple[str, ...]
    heads: dict[str, str | None]

    @property
    def ok(self) -> bool:
        return not self.problems and not any(self.heads.values())


def verify_backbone(name: str, variant: str | None = None, **options: Any) -> BackboneReport:
    """Build a backbone on the meta device (no memory, no arithmetic), run it, and compare it with its registration.

    `options` are further keys of its YAML section. Raises UsageError for an unknown name, variant or option. Faults of
    the network itself are in the report.
    """
    config = config_of(name, variant)
    config["backbone"] |= options
    chosen = config["backbone"][BACKBONES.get(name).selector]
    channels = get_backbone_channels(config)
    height, width = VERIFY_SIZE
    strides = get_backbone_strides(config)
    expected = tuple((1, c, height // s, width // s) for c, s in zip(channels, strides, strict=True))
    try:
        with torch.device("meta"):
            features = create_backbone(config).eval()(torch.empty(1, 3, height, width))
    except Exception as error:
        problem = f"building or running it failed: {shown(error)}"
        return BackboneReport(name, chosen, expected, (), (problem,), {})
    problems = list(feature_problems(features, channels, VERIFY_SIZE, strides))
    found = tuple(tuple(f.shape) for f in features) if _is_list_of_tensors(features) else ()
    heads: dict[str, str | None] = {}
    for head in HEADS.names():
        try:
            with torch.device("meta"):
                create_head({"head": {"type": head}}, channels, NUM_CLASSES).eval()(features)
            heads[head] = None
        except Exception as error:
            heads[head] = shown(error)
    return BackboneReport(name, chosen, expected, found, tuple(problems), heads)


def feature_problems(
    features: Any, channels: Sequence[int], size: tuple[int, int], strides: Sequence[int] = STRIDES
) -> Iterator[str]:
    if not _is_list_of_tensors(features):
        yield f"forward gives {type(features).__name__}, expected a list of four tensors [C1, C2, C3, C4]"
        return
    if len(features) != 4:
        yield f"forward gives {len(features)} feature maps, expected 4: [C1, C2, C3, C4]"
        return
    for number, (feature, c, stride) in enumerate(zip(features, channels, strides, strict=True), start=1):
        shape, stage = tuple(feature.shape), f"C{number}"
        low, high = [n // stride for n in size], [-(-n // stride) for n in size]
        fits = [[lo <= n <= hi for n in shape] for lo, hi in zip(low, high, strict=True)]
        if len(shape) != 4:
            yield f"{stage} has shape {shape}, expected B,{c},H,W with H,W about {high[0]},{high[1]}"
        elif shape[3] == c and shape[1] != c and fits[0][1] and fits[1][2]:
            yield f"{stage} is channels-last (B,H,W,C = {shape}): return it with .permute(0, 3, 1, 2)"
        else:
            if shape[1] != c:
                yield f"{stage} has {shape[1]} channels, its registration says {c}"
            if not (fits[0][2] and fits[1][3]):
                found = sorted({round(size[0] / max(shape[2], 1)), round(size[1] / max(shape[3], 1))})
                yield (
                    f"{stage} has stride {' and '.join(map(str, found))}, expected {stride} (its size is "
                    f"{shape[2]}x{shape[3]} for an input of {size[0]}x{size[1]})"
                )


def config_of(name: str, variant: str | None) -> dict[str, Any]:
    entry = BACKBONES.get(name)
    return {"backbone": {"type": name, entry.selector: str(variant or entry.default)}}


def _is_list_of_tensors(features: Any) -> bool:
    return isinstance(features, list | tuple) and all(isinstance(f, torch.Tensor) for f in features)


def shown(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
