"""Losses of logits that are upsampled band by band, so that logits of the image's size are never stored.

With many classes, logits of the image's size and their gradient are the largest tensors of a training step. A loss that
is a sum over pixels needs only a few rows of them at a time, and so does one that follows from such sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from seghiero_core.losses.reductions import widen

BAND = {"cpu": 2**21}
"""Approximate number of logits in a band, by type of device: on the CPU 8 MiB of float32."""
LARGEST_BAND = 2**26
"""The same for other devices, where starting a kernel costs more than memory does."""


@dataclass(frozen=True)
class BandLoss:
    """A loss that can be computed band by band.

    Attributes:
        weight: What its value is multiplied by in the total.
        sums: Called with some rows of the logits, B,C,r,W, and of the target, B,r,W. Returns what has to be summed over
            the bands: the loss's share of these rows, or what `value` needs.
        value: Turns the sums of all rows into the scalar loss. Default: the sum is the loss.
    """

    weight: float
    sums: Callable[[Tensor, Tensor], tuple[Tensor, ...]]
    value: Callable[..., Tensor] | None = None


def upsample(logits: Tensor, stride: int, height: int, width: int) -> Tensor:
    """Upsample logits bilinearly and crop the padding away.

    Args:
        logits: B,C,h,w over the padded image.
        stride: How many pixels of the image a logit covers along each side.
        height, width: The size of the image in px, at most `stride` times that of the logits.

    Returns:
        B,C,height,width.
    """
    if stride > 1:
        size = (logits.shape[2] * stride, logits.shape[3] * stride)
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    return logits[..., :height, :width]


def loss_over_bands(
    logits: Tensor, stride: int, target: Tensor, losses: Mapping[str, BandLoss]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the weighted sum of losses of upsampled logits, and its gradient with it, band by band.

    Where a loss needs the sums over all rows before its gradient, there are two passes over the bands.

    Args:
        logits: B,C,h,w over the padded image.
        stride: As for `upsample`.
        target: B,H,W.
        losses: The losses by name.

    Returns:
        The scalar sum, which can be differentiated once, and each loss by name, unweighted and detached.
    """
    total, *values = _OverBands.apply(logits, stride, target, list(losses.values()))
    return total, dict(zip(losses, values, strict=True))


class _OverBands(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, stride: int, target: Tensor, losses: list[BandLoss]) -> tuple[Tensor, ...]:
        needs_grad = ctx.needs_input_grad[0]
        coarse = widen(logits.detach()).contiguous()
        two_passes = [loss for loss in losses if loss.value is not None]
        sums: dict[int, tuple[Tensor, ...]] = {}  # of those
        if two_passes:
            for _, band, rows in _bands(coarse, stride, target):
                for i, loss in enumerate(two_passes):
                    found = loss.sums(band, rows)
                    sums[i] = tuple(map(torch.add, sums[i], found)) if i in sums else found
        finished = [_value_and_gradients(loss, sums[i], needs_grad) for i, loss in enumerate(two_passes)]
        grad = torch.zeros_like(coarse) if needs_grad else None
        values = {id(loss): value for loss, (value, _) in zip(two_passes, finished, strict=True)}
        of_sums = {id(loss): gradients for loss, (_, gradients) in zip(two_passes, finished, strict=True)}
        for piece, band, rows in _bands(coarse, stride, target, needs_grad=needs_grad):
            with torch.set_grad_enabled(needs_grad):
                total = band.new_zeros(())
                for loss in losses:
                    if loss.value is None:
                        (share,) = loss.sums(band, rows)
                        values[id(loss)] = values.get(id(loss), 0) + share.detach()
                        total = total + loss.weight * share
                    elif needs_grad:  # the chain rule: this band's part of the sums, times the loss's slope in them
                        terms = zip(loss.sums(band, rows), of_sums[id(loss)], strict=True)
                        total = total + loss.weight * sum((part * slope).sum() for part, slope in terms)
            if needs_grad:
                (piece_grad,) = torch.autograd.grad(total, piece.values)
                grad[:, :, piece.rows] += piece_grad
        ctx.grad, ctx.dtype = grad, logits.dtype
        ordered = [values[id(loss)] for loss in losses]
        ctx.mark_non_differentiable(*ordered)
        return sum(loss.weight * value for loss, value in zip(losses, ordered, strict=True)), *ordered

    @staticmethod
    def backward(ctx, grad_total: Tensor, *_: Tensor):
        if torch.is_grad_enabled():
            raise RuntimeError("this loss can be differentiated only once; call backward without create_graph=True")
        grad, ctx.grad = ctx.grad, None
        if grad is None:
            raise RuntimeError("the gradient of this loss has been used; call backward without retain_graph=True")
        return grad.mul_(grad_total).to(ctx.dtype), None, None, None


def _value_and_gradients(
    loss: BandLoss, sums: tuple[Tensor, ...], needs_grad: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The value of a loss, and its gradients with respect to its sums."""
    with torch.set_grad_enabled(needs_grad):
        leaves = [each.detach().requires_grad_(needs_grad) for each in sums]
        value = loss.value(*leaves)
        gradients = torch.autograd.grad(value, leaves) if needs_grad else ()
    return value.detach(), gradients


@dataclass(frozen=True)
class _Piece:
    values: Tensor  # B,C,r,w of the coarse logits that a band is made from
    rows: slice  # where they are


def _bands(
    coarse: Tensor, stride: int, target: Tensor, *, needs_grad: bool = False
) -> Iterator[tuple[_Piece, Tensor, Tensor]]:
    """Yield what each band is made from, its logits B,C,r,W, and its rows of the target B,r,W.

    A band is upsampled with one row more on each side, so that it equals the same rows of the whole.
    """
    height, width = target.shape[1:]
    available = coarse.shape[2]
    limit = BAND.get(coarse.device.type, LARGEST_BAND)
    rows = max(1, round(limit / (coarse[:, :, 0].numel() * stride * stride)))
    for top in range(0, -(-height // stride), rows):
        bottom = min(top + rows, available)
        before, after = min(top, 1), min(available - bottom, 1)
        covered = slice(top - before, bottom + after)
        piece = _Piece(coarse[:, :, covered].detach().requires_grad_(needs_grad), covered)
        first, last = top * stride, min(bottom * stride, height)
        with torch.set_grad_enabled(needs_grad):
            up = upsample(piece.values, stride, before * stride + last - first, width)
            yield piece, up[:, :, before * stride :], target[:, first:last]
