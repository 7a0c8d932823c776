"""Gradient checkpointing: the backward pass recomputes activations instead of storing them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # the base of SyncBatchNorm too
from torch.utils.checkpoint import checkpoint


def checkpointed(block: nn.Module, *inputs: Any, part: Callable[..., Any] | None = None) -> Any:
    """Call a block, or a part of it, so that the backward pass recomputes its activations.

    Gradients and BatchNorm's running statistics are the same as with a plain call, which this is where no gradient is
    needed, and in `torch.compile`, which decides itself what to recompute. What the last operation returns isn't
    recomputed. `torch.func.grad` can't differentiate it, and the block must stay in training mode until the backward
    pass.

    Args:
        block: The module.
        *inputs: Its inputs.
        part: A method of the block to call instead.

    Returns:
        What the call returns.
    """
    call = part or block
    if not (block.training and torch.is_grad_enabled()) or torch.compiler.is_compiling():
        return call(*inputs)
    return checkpoint(call, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), _FrozenStatistics(block)))


class _FrozenStatistics:
    """Keeps BatchNorm's running statistics as they are: a recomputation would count the same batch again.

    It can be entered several times, once for each backward pass.
    """

    def __init__(self, block: nn.Module):
        self.norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        self.kept: list[tuple[float | None, Any]] = []

    def __enter__(self) -> None:
        self.kept = [(norm.momentum, norm.num_batches_tracked) for norm in self.norms]
        for norm in self.norms:
            norm.momentum, norm.num_batches_tracked = 0.0, norm.num_batches_tracked.clone()

    def __exit__(self, *_: object) -> None:
        for norm, (momentum, batches) in zip(self.norms, self.kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches


class CountedOnce:
    """Lets the BatchNorms of a network count a batch once, though checkpoints inside the network recompute it.

    Use it as a context manager around each forward pass of the network: what runs outside recomputes.

    Args:
        network: The network.
    """

    def __init__(self, network: nn.Module):
        self.running = False
        self.kept: dict[nn.Module, tuple[float | None, Any]] = {}
        for norm in network.modules():
            if isinstance(norm, _BatchNorm) and norm.track_running_stats:
                norm.register_forward_pre_hook(self._freeze)
                # Always called: a checkpoint ends its recomputation by an error, as soon as it has what it needs.
                norm.register_forward_hook(self._restore, always_call=True)

    def __enter__(self) -> None:
        self.running = True

    def __exit__(self, *_: object) -> None:
        self.running = False

    def _freeze(self, norm: nn.Module, _: Any) -> None:
        if not self.running:
            self.kept[norm] = (norm.momentum, norm.num_batches_tracked)
            norm.momentum, norm.num_batches_tracked = 0.0, norm.num_batches_tracked.clone()

    def _restore(self, norm: nn.Module, *_: Any) -> None:
        if norm in self.kept:
            norm.momentum, norm.num_batches_tracked = self.kept.pop(norm)
