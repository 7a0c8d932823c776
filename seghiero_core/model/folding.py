"""Folding BatchNorm into convolutions, so that a trained network predicts faster."""

from __future__ import annotations

from collections import Counter

import torch
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from seghiero_core.model.segmentation import SegmentationModel

TOLERANCE = 1e-3
"""How much logits may change, relative to the greatest. What rounding changes is hundreds of times less."""


@torch.inference_mode(False)
@torch.no_grad()
def fold_batch_norms(network: SegmentationModel) -> int:
    """Fold each BatchNorm that follows a convolution into the convolution's weights, in place.

    In eval mode a BatchNorm multiplies each channel by one number and adds another, which a convolution can do itself,
    so the logits stay the same but for rounding. Which one follows which is found by a forward pass.

    Args:
        network: The network, in eval mode. It can't be trained any more.

    Returns:
        How many were folded. It is 0, and nothing changes, if that would change the logits, because the network reads
        the output of a convolution elsewhere too.

    Example:
        >>> from seghiero_core.model.factories import build_model
        >>> network = build_model({"backbone": {"type": "resnet", "depth": 18}}, num_classes=5).eval()
        >>> fold_batch_norms(network)
        26
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        return 0
    images = [_noise(network, side) for side in ((2, 2), (3, 5))]
    befores, pairs = zip(*(_run(network, each) for each in images), strict=True)
    followed = {conv: norm for conv, norm in pairs[0].items() if pairs[1].get(conv) is norm}
    kept = {conv: (conv.weight, conv.bias) for conv in followed}
    for conv, norm in followed.items():
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
    remains = {norm: _what_remains(norm) for norm in followed.values()}
    _replace(network, remains)
    if all(_equals(network, each, before) for each, before in zip(images, befores, strict=True)):
        return len(followed)
    for conv, (weight, bias) in kept.items():
        conv.weight, conv.bias = weight, bias
    _replace(network, {new: norm for norm, new in remains.items()})
    return 0


def _noise(network: SegmentationModel, strides: tuple[int, int]) -> torch.Tensor:
    """Return an image of some strides of C4 along each side, with values as in the data."""
    size = [side * network.stride for side in strides]
    noise = torch.rand(1, network.mean.shape[1], *size, generator=torch.Generator().manual_seed(0))
    return (4 * noise.to(network.mean.device) - 2) * network.std + network.mean


def _equals(network: SegmentationModel, images: torch.Tensor, before: torch.Tensor) -> bool:
    try:
        after = network(images).logits
    except AttributeError:  # a network that reads attributes of its norms
        return False
    return bool((after - before).abs().max() <= TOLERANCE * before.abs().max())


def _run(network: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, dict[nn.Conv2d, nn.BatchNorm2d]]:
    """Return the logits, and the BatchNorm after each convolution that has one, where both are called once."""
    calls: Counter[nn.Module] = Counter()
    made: dict[int, tuple[nn.Conv2d, torch.Tensor, int]] = {}
    followed: dict[nn.Conv2d, nn.BatchNorm2d] = {}

    def after_conv(conv: nn.Module, _: object, output: torch.Tensor) -> None:
        calls[conv] += 1
        made[id(output)] = conv, output, output._version  # the reference keeps the id unique

    def before_norm(norm: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        calls[norm] += 1
        conv, output, version = made.get(id(inputs[0]), (None, None, None))
        if conv is not None and output._version == version:  # else something was added to it in place
            followed[conv] = norm

    hooks = [
        m.register_forward_hook(after_conv)
        for m in network.modules()
        if isinstance(m, nn.Conv2d) and "weight" in m._parameters  # else it is computed from others
    ]
    hooks += [
        m.register_forward_pre_hook(before_norm)
        for m in network.modules()
        if type(m) in (nn.BatchNorm2d, BatchNormAct2d) and m.running_var is not None
    ]
    try:
        logits = network(images).logits
    finally:
        for hook in hooks:
            hook.remove()
    return logits, {conv: norm for conv, norm in followed.items() if calls[conv] == calls[norm] == 1}


def _what_remains(norm: nn.BatchNorm2d) -> nn.Module:
    return nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()


def _replace(network: nn.Module, replaced: dict[nn.Module, nn.Module]) -> None:
    for module in list(network.modules()):
        for name, child in module.named_children():
            if child in replaced:
                setattr(module, name, replaced[child])
