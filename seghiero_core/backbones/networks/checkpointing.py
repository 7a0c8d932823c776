"""Gradient checkpointing of one block: the backward pass recomputes its activations instead of storing them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # the base of SyncBatchNorm too
from torch.utils.checkpoint import checkpoint


def checkpointed(block: nn.Module, *inputs: Any) -> Any:
    """Call a block so that the backward pass recomputes its activations.

    Gradients and BatchNorm's running statistics are the same as with a plain call.

    Args:
        block: The module.
        *inputs: Its inputs.

    Returns:
        `block(*inputs)`.
    """
    return checkpoint(
        block, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), _frozen_statistics(block))
    )


@contextmanager
def _frozen_statistics(block: nn.Module) -> Iterator[None]:
    """Keep BatchNorm's running statistics as they are: the recomputation would count the same batch twice."""
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches
