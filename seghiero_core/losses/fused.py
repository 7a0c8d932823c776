"""Losses that make their gradient along with their value, a piece of the image at a time.

A loss that is a sum over pixels needs no tensor of the logits' size but its gradient, if it goes through the pixels in
pieces that stay in the processor's cache. On an accelerator there is one piece: there launches cost more than memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from seghiero_core.losses.tree import widen

PIECE = 2**18
"""Numbers in a piece of the logits on the CPU (1 MiB of float32)."""

PieceLoss = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor | None]]


def sum_over_pixels(logits: Tensor, label: Tensor, piece_loss: PieceLoss) -> Tensor:
    """The sum of `piece_loss` over pixels, differentiable once.

    `logits` B,C,H,W; `label` B,H,W of integers. `piece_loss(z, y, with_grad)` gets z (b,C,p, at least float32) and y
    (b,p) of some of the pixels, and returns the summed loss and its gradient by z (None where `with_grad` is false);
    it may overwrite neither.
    """
    return _Fused.apply(logits, label, piece_loss)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, label: Tensor, piece_loss: PieceLoss) -> Tensor:
        ctx.shape, ctx.dtype = logits.shape, logits.dtype
        flat, label = logits.flatten(2), label.flatten(1)
        dtype = widen(logits[:0]).dtype
        with_grad = ctx.needs_input_grad[0]
        # Not in half precision: a pixel's share of a mean is too small for it before the loss is scaled.
        grad = torch.empty(flat.shape if with_grad else 0, dtype=dtype, device=logits.device)
        total = torch.zeros((), dtype=dtype, device=logits.device)
        for rows, columns in _pieces(flat):
            value, of_piece = piece_loss(widen(flat[rows, :, columns]), label[rows, columns], with_grad)
            total += value
            if of_piece is not None:
                grad[rows, :, columns] = of_piece
        ctx.save_for_backward(grad)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_total: Tensor):
        (grad,) = ctx.saved_tensors
        return (grad * grad_total).to(ctx.dtype).view(ctx.shape), None, None


def _pieces(flat: Tensor) -> Iterator[tuple[slice, slice]]:
    batch, channels, pixels = flat.shape
    if flat.device.type != "cpu":
        yield slice(None), slice(None)
        return
    step = max(PIECE // channels, 256)
    for row in range(batch):
        for start in range(0, pixels, step):
            yield slice(row, row + 1), slice(start, start + step)
