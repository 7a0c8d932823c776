"""The gradient of a training step, by the loop itself, in one process or in several.

`torchrun --nproc-per-node 2 tests/support/gradients.py CFG OUT` saves those of all losses with two batches of two.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from seghiero_core.config.loading import load_config
from seghiero_core.registry import BACKBONES, HEADS, register_backbone, register_head
from seghiero_core.training import loop
from seghiero_core.training.run import Run

WEIGHTS = "class_weights: [0.3, 1, 2.5, 0.7]"
LOSSES = {
    "default": "{class_weights: auto}",
    "flat": f"{{preset: flat, {WEIGHTS}}}",
    "hssn": f"{{preset: hssn, {WEIGHTS}}}",
    "logicseg": "{preset: logicseg}",
    "wasserstein": f"{{preset: wasserstein, {WEIGHTS}}}",
    "lovasz": "{terms: {lovasz: 1}}",
    "mutual_information": "{terms: {leaf_cross_entropy: 1.0e-3, region_mutual_information: {pool: 2}}}",
    "level": f"{{terms: {{level_cross_entropy: 1}}, {WEIGHTS}}}",
    "conditional": f"{{terms: {{conditional_cross_entropy: 1}}, {WEIGHTS}}}",
    "focal": f"{{terms: {{focal: 1}}, {WEIGHTS}}}",
    "few_triplets": "{terms: {leaf_cross_entropy: 1.0e-3, tree_triplet: {samples: 8, margin: 2}}}",
    "mask_query": "{preset: flat}",
    "mask_query_over_nodes": "{preset: logicseg}",
}
OWN = ["head={type: mask_query, queries: 3, proj_dim: 8}", "training.freeze_norm=true"]
"""A head with a loss of its own, and fewer queries than leaves; images would meet in its BatchNorms."""


class Plain(nn.Module):
    """Convolutions without BatchNorm, so that images don't meet."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Conv2d(before, 8, kernel, stride=stride, padding=1)
            for before, kernel, stride in ((3, 5, 4), (8, 3, 2), (8, 3, 2), (8, 3, 2))
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        features = []
        for stage in self.stages:
            x = stage(x).relu()
            features.append(x)
        return features


class PlainHead(nn.Module):
    """A classifier and an embedding of 1x1 convolutions, without dropout."""

    def __init__(self, in_channels: Sequence[int], num_classes: int, embedding: bool) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(sum(in_channels), num_classes, 1)
        self.embedding = nn.Conv2d(sum(in_channels), 4, 1) if embedding else None

    def forward(self, features: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
        size = features[0].shape[2:]
        x = torch.cat([F.interpolate(feature, size, mode="bilinear") for feature in features], dim=1)
        return self.classifier(x), None if self.embedding is None else F.normalize(self.embedding(x), dim=1)


def build_backbone(variant: str) -> nn.Module:
    """A backbone for tests."""
    return Plain()


def build_head(
    in_channels_list: Sequence[int], num_classes: int, proj_dim: int, *, embedding: bool = True
) -> nn.Module:
    """A head for tests."""
    return PlainHead(in_channels_list, num_classes, embedding)


@contextmanager
def registered() -> Iterator[None]:
    """Register both as "plain" while the block runs."""
    register_backbone("plain", channels=(8, 8, 8, 8))(build_backbone)
    register_head("plain", proj_dim=8)(build_head)
    try:
        yield
    finally:
        BACKBONES.entries.pop("plain")
        HEADS.entries.pop("plain")


class _Stop(Exception):
    pass


def first_step(cfg: Path, loss: str, batch_size: int, accumulation: int) -> torch.Tensor:
    """Train for a step and return its gradient, of all parameters in one vector."""
    options = [
        f"loss={LOSSES[loss]}",
        f"training.batch_size={batch_size}",
        f"output.name={loss}-{batch_size}x{accumulation}",
    ]
    options += OWN if loss.startswith("mask_query") else []
    config = load_config(cfg, [*options, f"training.gradient_accumulation={accumulation}"])
    found, update_weights = [], loop.update_weights

    def stop(run: Run) -> None:
        model = run.accelerator.unwrap_model(run.model)
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        raise _Stop

    loop.update_weights = stop
    try:
        loop.train(config)
    except _Stop:
        return found[0]
    finally:
        loop.update_weights = update_weights
    raise AssertionError("the run had no step")


if __name__ == "__main__":
    from support.processes import leave_processes

    cfg, out = map(Path, sys.argv[1:])
    with registered():
        found = {name: first_step(cfg, name, 2, 1) for name in LOSSES}
    if torch.distributed.get_rank() == 0:
        torch.save(found, out)
    leave_processes()
