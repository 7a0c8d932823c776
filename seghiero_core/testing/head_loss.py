"""Find problems of a head's further outputs and of its own loss, each described in one sentence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from seghiero_core.errors import shorten
from seghiero_core.hierarchy.tree import IGNORE_INDEX, Hierarchy
from seghiero_core.losses.reductions import label_counts
from seghiero_core.testing.shapes import NUM_CLASSES, describe_error

_NAMES = [f"class{i}" for i in range(NUM_CLASSES)]
HIERARCHY = Hierarchy.from_config({"labels": _NAMES, "tree": {"pair": _NAMES[:2], "rest": _NAMES[2:]}})
"""A tree with NUM_CLASSES leaves."""


def sample_target(images: int, height: int, width: int) -> torch.Tensor:
    """Make a target with leaves, an inner node and ignored pixels.

    Args:
        images: The batch size B.
        height: H in px.
        width: W in px.

    Returns:
        B,H,W int64, each leaf in a vertical stripe.
    """
    stripes = torch.arange(width) * NUM_CLASSES // width
    target = stripes.expand(images, height, width).clone()
    target[:, : height // 8] = IGNORE_INDEX
    target[:, -(height // 8) :, : width // 2] = NUM_CLASSES  # the first inner node
    return target


def head_loss(head: nn.Module, outputs: dict[str, torch.Tensor], target: torch.Tensor, **options: Any) -> torch.Tensor:
    """Compute a head's own loss as training does.

    Args:
        head: A head with a method `loss`.
        outputs: The third value of its forward.
        target: B,H,W of labels of HIERARCHY.
        **options: `counts`, if the batch is only a part of the step.

    Returns:
        The weighted sum of its terms, a scalar.
    """
    terms = head.loss(outputs, target, HIERARCHY, **options)
    return sum(weight * value for weight, value in terms.values())


def head_loss_problems(head: nn.Module, features: Sequence[torch.Tensor]) -> Iterator[str]:
    """Check the third value that a head may return in training, and its own loss.

    Args:
        head: The head, in training mode.
        features: [C1, C2, C3, C4] of at least two images, each B,c,h,w.

    Yields:
        One sentence per problem; nothing for a head without a third value.
    """
    _, _, *further = head.train()(features)
    if not further:
        return
    outputs, images = further[0], len(features[0])
    if not isinstance(outputs, dict) or not all(isinstance(value, torch.Tensor) for value in outputs.values()):
        yield f"the third value of forward is a {type(outputs).__name__}, expected a dict of tensors"
        return
    if wrong := [name for name, value in outputs.items() if value.shape[:1] != (images,)]:
        yield f"further outputs without the batch as their first dimension: {shorten(wrong, 5)}"
        return
    if not callable(getattr(head, "loss", None)):
        yield "it returns a third value, but has no method loss(outputs, target, hierarchy, *, counts)"
        return
    height, width = (4 * side - 3 for side in features[0].shape[2:])  # as for an image with padding
    target = sample_target(images, height, width)
    try:
        terms = head.loss(outputs, target, HIERARCHY)
        yield from _term_problems(head, terms)
        yield from _share_problems(head, outputs, target)
    except Exception as error:
        yield f"its loss failed: {describe_error(error)}"


def _term_problems(head: nn.Module, terms: Any) -> Iterator[str]:
    """Check each term of a head's loss by itself."""
    for name, (weight, value) in terms.items():
        if not isinstance(value, torch.Tensor) or value.ndim:
            yield f"loss '{name}' is not a scalar tensor"
        elif not torch.isfinite(value):
            yield f"loss '{name}' is {value.item()}"
        elif weight:
            gradients = ()
            if value.requires_grad:
                parameters = list(head.parameters())
                gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
            if not any(gradient is not None and gradient.any() for gradient in gradients):
                yield f"loss '{name}' has no gradient for any parameter of the head"


def _share_problems(head: nn.Module, outputs: dict[str, torch.Tensor], target: torch.Tensor) -> Iterator[str]:
    """Check that a loss ignores what it should, and that the shares of the batches of a step add up."""
    ignored = torch.full_like(target, IGNORE_INDEX)
    nothing = head_loss(head, outputs, ignored)
    if nothing != 0:
        yield f"its loss is {nothing.item():g} where all pixels are ignored, expected 0"
    first, rest = ({name: value[part] for name, value in outputs.items()} for part in (slice(1), slice(1, None)))
    alone = head_loss(head, first, target[:1])
    with_ignored = head_loss(head, outputs, torch.cat([target[:1], ignored[1:]]))
    if not torch.allclose(alone, with_ignored, rtol=1e-4, atol=1e-5):
        yield "its loss changes with an image whose pixels are all ignored"
    uneven = target.clone()
    uneven[1:, :, target.shape[2] // 3 :] = IGNORE_INDEX
    counts = label_counts(uneven, HIERARCHY)
    whole = head_loss(head, outputs, uneven)
    shares = head_loss(head, first, uneven[:1], counts=counts) + head_loss(head, rest, uneven[1:], counts=counts)
    if not torch.allclose(whole, shares, rtol=1e-4, atol=1e-5):
        yield (
            f"its loss of a step in two batches is {shares.item():g}, and in one {whole.item():g}: "
            "divide sums by numbers that follow from `counts`"
        )
