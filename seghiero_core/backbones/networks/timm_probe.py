"""Find out how a model of timm is run as a backbone, by building it and running it on the meta device."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import timm
import torch
from torch import nn

from seghiero_core.backbones.networks.timm_facts import TARGETS, TimmFacts
from seghiero_core.backbones.networks.timm_network import TimmNetwork, create_timm_model
from seghiero_core.errors import UsageError, nearest

# Arguments that let a model take images of any size; the first that its builder takes.
_ANY_SIZE = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})
_UNITS = (32, 64, 128, 256)  # px; tried in this order
_GRIDS = ((1, 1), (2, 3), (5, 4))  # rows and columns of units that a network must take


@dataclass(frozen=True)
class _Map:
    """A feature map: its position among the model's, its channels, and its stride in px of the network's input."""

    index: int
    width: int
    stride: float


def check_timm_name(variant: str) -> None:
    """Check that timm has a model.

    Args:
        variant: Its name, without a tag.

    Raises:
        UsageError: When it has none of that name; the message names the nearest.
    """
    if timm.is_model(variant) and "." not in variant:
        return
    name, dot, _ = variant.partition(".")
    if dot and timm.is_model(name):
        raise UsageError(
            f"timm has no model '{variant}'. Write `variant: {name}`, and the tag of the weights as `pretrained`."
        )
    hint = nearest(variant, timm.list_models())
    raise UsageError(
        f"timm {timm.__version__} has no model '{variant}'.{hint} `seghiero list-backbones --timm PATTERN` lists them."
    )


def probe(variant: str) -> TimmFacts:
    """Find out how a model of timm is run as a backbone.

    The model is built on the meta device, which needs no memory for its parameters and computes nothing; one that reads
    values of tensors is then built on the CPU.

    Args:
        variant: Its name, without a tag.

    Returns:
        The facts; `refused` says why it can't be a backbone.

    Raises:
        UsageError: When timm has no such model.
    """
    check_timm_name(variant)
    reason = ""
    for device in ("meta", "cpu"):
        try:
            with warnings.catch_warnings(), torch.device(device):
                warnings.simplefilter("ignore")
                return _probe(variant)
        except _Refused as error:
            reason = str(error)
        if "meta tensor" not in reason:
            break
    return TimmFacts(variant, refused=reason)


class _Refused(Exception):
    """Why a model can't be a backbone."""


def _probe(variant: str) -> TimmFacts:
    net, arguments = _build(variant)
    side = timm.get_pretrained_cfg(variant)
    native = tuple((side.input_size if side else (3, 224, 224))[1:])
    maps = _maps(net, native)
    plain = len({each.stride for each in maps}) == 1
    if plain:
        count = len(maps)
        taken = [maps[math.ceil(count * quarter / 4) - 1] for quarter in (1, 2, 3, 4)]
    else:
        taken = [each for each in maps if 4 <= _power_of_2(each.stride) <= TARGETS[-1]]
        if not taken:
            raise _Refused(f"no feature map has a stride between 4 and 32 px; it has {_listed(maps)}")
        last = {_power_of_2(each.stride): each for each in taken}  # the deepest map of each stride
        taken = sorted(last.values(), key=lambda each: each.index)
    if sorted({each.index for each in taken}) != [each.index for each in taken]:
        raise _Refused(
            f"it has fewer than four blocks, and its feature maps have a single stride; it has {_listed(maps)}"
        )
    facts = TimmFacts(
        variant,
        arguments=arguments,
        indices=tuple(each.index for each in taken),
        widths=tuple(each.width for each in taken),
        strides=tuple(_power_of_2(each.stride) for each in taken),
        own_strides=tuple(each.stride for each in taken),
        plain=plain,
    )
    reasons = []
    for candidate in _sizes(facts, native):
        try:
            exact = _exact(net, candidate)
            return _without_unused(replace(candidate, exact=exact))
        except _Refused as error:
            reasons.append(str(error))
    raise _Refused(reasons[-1])


def _build(variant: str) -> tuple[nn.Module, dict[str, bool]]:
    """Build a model so that it takes any size, if it can."""
    for arguments in _ANY_SIZE:
        try:
            return create_timm_model(variant, **arguments).eval(), arguments
        except (TypeError, AssertionError) as error:
            fault = error
    raise _Refused(f"timm can't build it without its classifier: {_first_line(fault)}")


def _maps(net: nn.Module, native: Sequence[int]) -> list[_Map]:
    """All feature maps of a model at the size that it is made for."""
    found = _run(net, native, None)
    declared = [float(info["reduction"]) for info in net.feature_info]
    if len(declared) != len(found):
        declared = [native[0] / each.shape[-2] for each in found]
    return [
        _Map(number, each.shape[1], stride) for number, (each, stride) in enumerate(zip(found, declared, strict=True))
    ]


def _run(net: nn.Module, size: Sequence[int], indices: Sequence[int] | None) -> list[torch.Tensor]:
    call: Callable[..., list[torch.Tensor]] = net.forward_intermediates
    try:
        with torch.no_grad():
            maps = call(
                torch.empty(2, 3, *size),
                indices=None if indices is None else list(indices),
                output_fmt="NCHW",
                intermediates_only=True,
            )
    except Exception as error:  # of any class, as each model has its own checks
        raise _Refused(f"it fails at {size[0]}x{size[1]} px: {_first_line(error)}") from None
    if not all(isinstance(each, torch.Tensor) and each.dim() == 4 and len(each) == 2 for each in maps):
        raise _Refused("its features are not maps B,C,H,W")
    return list(maps)


def _sizes(facts: TimmFacts, native: Sequence[int]) -> Iterator[TimmFacts]:
    """The ways to give a model images of any size, the best first."""
    ratio = _common_ratio(facts)
    side = max(native)
    units = [*_UNITS, *([side] if side % 32 == 0 and side not in _UNITS else [])]
    for unit in units:
        if (unit * ratio).denominator == 1:
            yield replace(facts, unit=unit, inner=int(unit * ratio))
    if native[0] == native[1]:
        yield replace(facts, unit=max(32, round(side / 32) * 32), inner=side, windows=True)


def _common_ratio(facts: TimmFacts) -> Fraction:
    """The strides of a model relative to the powers of 2 that they stand for, such as 14/16; 1 if they differ in it."""
    ratios = {Fraction(own).limit_denominator(64) / s for own, s in zip(facts.own_strides, facts.strides, strict=True)}
    return ratios.pop() if len(ratios) == 1 else Fraction(1)


def _exact(net: nn.Module, facts: TimmFacts) -> bool:
    """Whether the maps have exactly the strides of the facts; refuse a model that fails or whose maps are far off."""
    exact = True
    for rows, columns in ((1, 1),) if facts.windows else _GRIDS:
        maps = _run(net, (rows * facts.inner, columns * facts.inner), facts.indices)
        for each, width, stride in zip(maps, facts.widths, facts.strides, strict=True):
            expected = (rows * facts.unit / stride, columns * facts.unit / stride)
            if each.shape[1] != width or any(
                abs(n - e) > 4 and not 0.7 < n / e < 1.4 for n, e in zip(each.shape[2:], expected, strict=True)
            ):
                raise _Refused(f"its feature maps don't grow with the image: {tuple(each.shape)} at stride {stride}")
            exact &= tuple(each.shape[2:]) == expected
    return exact


def _without_unused(facts: TimmFacts) -> TimmFacts:
    """Add which parameters the feature maps don't depend on, and how many there are."""
    try:
        network = TimmNetwork(facts, 32, 0.0, False).eval()
        names, parameters = zip(*network.net.named_parameters(), strict=True)
        with torch.enable_grad():
            levels = network(torch.empty(2, 3, facts.unit, 2 * facts.unit))
            total = sum(level.sum() for level in levels)
            learnable = [parameter for parameter in parameters if parameter.requires_grad]
            gradients = torch.autograd.grad(total, learnable, allow_unused=True)
    except Exception as error:
        raise _Refused(f"it fails: {_first_line(error)}") from None
    used = {id(p) for p, gradient in zip(learnable, gradients, strict=True) if gradient is not None}
    unused = tuple(name for name, parameter in zip(names, parameters, strict=True) if id(parameter) not in used)
    return replace(facts, unused=unused, parameters=sum(p.numel() for p in parameters))


def _power_of_2(stride: float) -> int:
    return 2 ** round(math.log2(stride))


def _listed(maps: Sequence[_Map]) -> str:
    return ", ".join(f"{each.stride:g}" for each in maps)


def _first_line(error: Exception) -> str:
    return (str(error).strip().partition("\n")[0] or type(error).__name__)[:200]
