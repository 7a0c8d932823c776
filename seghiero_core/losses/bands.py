"""Logits that are upsampled band by band, so that those of the image's size are never stored, and losses of these.

With many classes, logits of the image's size and their gradient are the largest tensors of a training step. A loss that
is a sum over pixels needs only a few rows of them at a time, and so does one that follows from such sums. Prediction
decodes them band by band, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
            for _, _, band, rows in _bands(coarse, stride, target):
                for i, loss in enumerate(two_passes):
                    found = loss.sums(band, rows)
                    sums[i] = tuple(map(torch.add, sums[i], found)) if i in sums else found
        finished = [_value_and_gradients(loss, sums[i], needs_grad) for i, loss in enumerate(two_passes)]
        grad = torch.zeros_like(coarse) if needs_grad else None
        values = {id(loss): value for loss, (value, _) in zip(two_passes, finished, strict=True)}
        of_sums = {id(loss): gradients for loss, (_, gradients) in zip(two_passes, finished, strict=True)}
        for place, piece, band, rows in _bands(coarse, stride, target, needs_grad=needs_grad):
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
                (piece_grad,) = torch.autograd.grad(total, piece)
                grad[:, :, place] += piece_grad
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
class _Band:
    """Some rows of an image, and what they are upsampled from: one row more on each side, so that they equal the whole.

    Attributes:
        rows: The rows of the image, px.
        coarse_rows: The rows of the coarse logits.
        skip: How many upsampled rows come before those of the band.
    """

    rows: slice
    coarse_rows: slice
    skip: int

    def upsample(self, coarse: Tensor, stride: int, width: int) -> Tensor:
        """B,C,r,w of the `coarse_rows` to B,C,R,width of the `rows`."""
        return upsample(coarse, stride, self.skip + self.rows.stop - self.rows.start, width)[:, :, self.skip :]


def _divide(coarse: Tensor, stride: int, height: int) -> Iterator[_Band]:
    """Divide an image of a height in px into bands of about `BAND` logits, from the top."""
    available = coarse.shape[2]
    limit = BAND.get(coarse.device.type, LARGEST_BAND)
    rows = max(1, round(limit / (coarse[:, :, 0].numel() * stride * stride)))
    for top in range(0, -(-height // stride), rows):
        bottom = min(top + rows, available)
        before, after = min(top, 1), min(available - bottom, 1)
        image_rows = slice(top * stride, min(bottom * stride, height))
        yield _Band(image_rows, slice(top - before, bottom + after), before * stride)


def upsample_in_bands(logits: Tensor, stride: int, size: Sequence[int]) -> Iterator[tuple[slice, Tensor]]:
    """Upsample logits band by band.

    Args:
        logits: B,C,h,w over the padded image. Their memory format is kept, so that the bands equal the whole exactly.
        stride: As for `upsample`.
        size: (H, W) of the image, px.

    Yields:
        The rows of a band, px, and its logits B,C,r,W; from the top.
    """
    for band in _divide(logits, stride, size[0]):
        yield band.rows, band.upsample(logits[:, :, band.coarse_rows], stride, size[1])


def _bands(
    coarse: Tensor, stride: int, target: Tensor, *, needs_grad: bool = False
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Yield where the coarse logits of each band are, these, the band's logits B,C,r,W, and its target B,r,W."""
    for band in _divide(coarse, stride, target.shape[1]):
        piece = coarse[:, :, band.coarse_rows].detach().requires_grad_(needs_grad)
        with torch.set_grad_enabled(needs_grad):
            yield band.coarse_rows, piece, band.upsample(piece, stride, target.shape[2]), target[:, band.rows]
