"""Losses that compute their gradient together with their value, one piece of the image at a time.

A loss that is a sum over pixels needs no other tensor of the logits' size than its gradient if it works through the
pixels in pieces that fit the processor's cache. On an accelerator there is a single piece, because launching kernels
costs more there than memory does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from seghiero_core.losses.reductions import widen

PIECE = 2**19
"""Approximate number of logits in a piece on the CPU (2 MiB of float32)."""

PieceLoss = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor | None]]


def sum_over_pixels(logits: Tensor, label: Tensor, piece_loss: PieceLoss) -> Tensor:
    """Sum `piece_loss` over all pixels; the result can be differentiated once, and a second time is an error.

    Args:
        logits: B,C,H,W.
        label: B,H,W of integers.
        piece_loss: Called as `piece_loss(z, y, with_grad)` with z (b,C,p, at least float32) and y (b,p) of some of the
            pixels. Returns the summed loss and its gradient with respect to z (None where `with_grad` is false). It
            must not change z or y.

    Returns:
        Scalar sum.
    """
    return fused(logits, label, functools.partial(_value_and_grad, piece_loss=piece_loss))


def fused(logits: Tensor, label: Tensor, value_and_grad: PieceLoss) -> Tensor:
    """Compute a loss together with its gradient; it can be differentiated once, and a second time is an error.

    Args:
        logits: B,C,H,W.
        label: B,H,W of integers.
        value_and_grad: Called as `value_and_grad(logits, label, with_grad)` with logits (B,C,HW) and labels (B,HW).
            Returns the loss and its gradient B,C,HW, at least float32 (None where `with_grad` is false).

    Returns:
        Scalar loss.
    """
    return _Fused.apply(logits, label, value_and_grad)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, label: Tensor, value_and_grad: PieceLoss) -> Tensor:
        total, ctx.grad = value_and_grad(logits.flatten(2), label.flatten(1), ctx.needs_input_grad[0])
        ctx.value_and_grad = value_and_grad
        ctx.save_for_backward(logits, label)
        return total

    @staticmethod
    def backward(ctx, grad_total: Tensor):
        # `once_differentiable` would let a gradient penalty pass as 0: it raises only where `grad_total` has a graph.
        if torch.is_grad_enabled():
            raise RuntimeError("this loss can be differentiated only once; call backward without create_graph=True")
        logits, label = ctx.saved_tensors
        grad, ctx.grad = ctx.grad, None  # handed on, not copied
        if grad is None:  # a second pass through a retained graph
            grad = ctx.value_and_grad(logits.flatten(2), label.flatten(1), True)[1]
        return grad.mul_(grad_total).to(logits.dtype).view(logits.shape), None, None


def _value_and_grad(
    logits: Tensor, label: Tensor, with_grad: bool, *, piece_loss: PieceLoss
) -> tuple[Tensor, Tensor | None]:
    """The sum over all pieces, and its gradient B,C,HW where it is wanted."""
    # Not in half precision: one pixel's share of a mean would underflow before the loss is scaled.
    dtype = widen(logits[:0]).dtype
    grad = torch.empty(logits.shape, dtype=dtype, device=logits.device) if with_grad else None
    total = torch.zeros((), dtype=dtype, device=logits.device)
    for rows, columns in pieces(logits):
        value, piece_grad = piece_loss(widen(logits[rows, :, columns]), label[rows, columns], with_grad)
        total += value
        if grad is not None:
            grad[rows, :, columns] = piece_grad
    return total, grad


def pieces(flat: Tensor) -> Iterator[tuple[slice, slice]]:
    """Cut the pixels into pieces.

    Args:
        flat: B,C,HW.

    Yields:
        The images and the pixels of a piece, slices of B and HW.
    """
    batch, channels, pixels = flat.shape
    if flat.device.type != "cpu":
        yield slice(None), slice(None)
        return
    count = max(1, round(pixels * channels / PIECE))
    step = max(1, -(-pixels // count))  # rounded up, so that no small piece is left at the end
    for row in range(batch):
        for start in range(0, pixels, step):
            yield slice(row, row + 1), slice(start, start + step)
