"""The stem of a backbone for images with any number of bands."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from seghiero_core.errors import UsageError

_SIDE = 64  # px, of the image that the stem is found with
_COLORS = (1.0, 2.0, 3.0)  # of its channels; padding may add zeros
_TOLERANCE = 1e-3


def adapt_stem(backbone: nn.Module, channels: int, rgb: Sequence[int] = (), name: str = "the backbone") -> None:
    """Change the convolutions of a backbone that take an RGB image so that they take N bands.

    The filters W_r, W_g and W_b of such a convolution become

        W'_i = 3/N * W_c   if band i is the color c, red, green or blue, else
        W'_i = 3/N * (W_r + W_g + W_b) / 3.

    Their sum over all bands is W_r + W_g + W_b. So a backbone responds to N equal bands as it does to an RGB image of
    three equal channels, and with RGB alone nothing changes. A bias stays.

    Args:
        backbone: A module that takes B,3,H,W, with its weights. It is changed in place.
        channels: N, the number of bands.
        rgb: The positions of red, green and blue; empty for none.
        name: What messages call the backbone.

    Raises:
        UsageError: When something else than plain convolutions takes the image.
    """
    training = {module: module.training for module in backbone.modules()}
    backbone.eval()
    try:
        with torch.no_grad():
            convolutions = _image_convolutions(backbone)
            if not convolutions:
                raise _refused(name, channels, "no Conv2d takes the image")
            for convolution in convolutions:
                if not _widen(convolution, channels, rgb):
                    raise _refused(name, channels, f"its {type(convolution).__name__} rescales or shares its weights")
            try:
                backbone(_image(backbone, [0.0] * channels))
            except RuntimeError as error:
                reason = str(error).strip().partition("\n")[0]
                raise _refused(
                    name, channels, f"something other than a Conv2d takes the image, too: {reason}"
                ) from error
    finally:
        for module, value in training.items():
            module.training = value


def _image(backbone: nn.Module, colors: Sequence[float]) -> Tensor:
    """An image 1,C,H,W of one color, of the type of the backbone's parameters."""
    like = next(backbone.parameters())
    return like.new_tensor(colors).view(1, -1, 1, 1).repeat(1, 1, _SIDE, _SIDE)


def _image_convolutions(backbone: nn.Module) -> list[nn.Conv2d]:
    """The convolutions that take the image, resized or padded with zeros perhaps, but not changed in color."""
    found: dict[nn.Conv2d, None] = {}

    def look(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        x = args[0] if args else kwargs["input"]
        if x.dim() == 4 and x.shape[1] == len(_COLORS) and all(map(_has_color, x[0], _COLORS)):
            found[module] = None

    convolutions = [module for module in backbone.modules() if isinstance(module, nn.Conv2d)]
    hooks = [module.register_forward_pre_hook(look, with_kwargs=True) for module in convolutions]
    try:
        backbone(_image(backbone, _COLORS))
    finally:
        for hook in hooks:
            hook.remove()
    return list(found)


def _has_color(plane: Tensor, color: float) -> bool:
    is_color = (plane - color).abs() < _TOLERANCE
    return bool(is_color.any() and (is_color | (plane == 0)).all())


def _widen(convolution: nn.Conv2d, channels: int, rgb: Sequence[int]) -> bool:
    """Give a convolution N input channels; False where it doesn't respond to equal bands as before."""
    if convolution.groups != 1 or parametrize.is_parametrized(convolution):
        return False
    weight = convolution.weight
    gray = torch.linspace(0, 1, _SIDE * _SIDE).to(weight).view(1, 1, _SIDE, _SIDE)
    before = convolution(gray.expand(-1, 3, -1, -1))
    widened = weight.mean(dim=1, keepdim=True).repeat(1, channels, 1, 1)
    if rgb:
        widened[:, list(rgb)] = weight
    convolution.weight = nn.Parameter(widened * (3 / channels), requires_grad=weight.requires_grad)
    convolution.in_channels = channels
    after = convolution(gray.expand(-1, channels, -1, -1))
    return torch.allclose(after, before, rtol=_TOLERANCE, atol=_TOLERANCE * float(before.abs().max()))


def _refused(name: str, channels: int, reason: str) -> UsageError:
    return UsageError(
        f"dataset.channels: {name} can't be adapted to {channels} bands: {reason}. Choose another backbone."
    )
