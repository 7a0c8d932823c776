"""Gradient checkpointing of one block: its activations are recomputed in the backward pass instead of kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpointed(block: nn.Module, *inputs: Any) -> Any:
    """`block(*inputs)`, recomputed in the backward pass. Gradients and running statistics are those of a plain call."""
    return checkpoint(
        block, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), _frozen_statistics(block))
    )


@contextmanager
def _frozen_statistics(block: nn.Module) -> Iterator[None]:
    # The recomputation sees the same batch again; without this, running statistics would count it twice.
    norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d) and m.track_running_stats]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches
