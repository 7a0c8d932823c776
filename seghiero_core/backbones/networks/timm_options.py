"""Build a model of timm as a backbone, and refuse an option that the model would ignore."""

from __future__ import annotations

from functools import cache

import torch
from timm.layers import DropPath

from seghiero_core.backbones.networks.timm_facts import TARGETS, TimmFacts
from seghiero_core.backbones.networks.timm_lookup import timm_facts
from seghiero_core.backbones.networks.timm_network import TimmNetwork
from seghiero_core.errors import UsageError


def build_network(facts: TimmFacts, output_stride: int, drop_path: float, gradient_checkpointing: bool) -> TimmNetwork:
    """Build a model of timm with random weights.

    Args:
        facts: How the model is run.
        output_stride: Stride of C4 in px: 8, 16 or 32.
        drop_path: Probability of dropping the deepest residual branch in training.
        gradient_checkpointing: Whether to recompute parts of the network in the backward pass to save memory.

    Returns:
        The network.

    Raises:
        UsageError: When the model doesn't have an option.
    """
    name = facts.variant
    if output_stride != TARGETS[-1] and (reason := _stride_fault(name, output_stride)):
        raise UsageError(f"backbone.output_stride: timm's {name} has no {output_stride} ({reason}); remove the key.")
    if gradient_checkpointing and _kept_bytes(name, True) >= _kept_bytes(name, False):
        raise UsageError(f"backbone.gradient_checkpointing: timm's {name} has none; remove the key.")
    if drop_path and not _drops_paths(name):
        raise UsageError(f"backbone.drop_path: timm's {name} drops no residual branches; remove the key.")
    return TimmNetwork(facts, output_stride, drop_path, gradient_checkpointing)


@cache
def _stride_fault(name: str, output_stride: int) -> str:
    """Why a model can't have a smaller stride; empty if it can."""
    facts = timm_facts(name)
    if facts.strides != TARGETS or not facts.exact:
        return "its feature maps don't have the strides 4, 8, 16 and 32"
    targets = [min(target, output_stride) for target in TARGETS]
    side = 4 * facts.unit
    try:
        with torch.device("meta"):
            network = TimmNetwork(facts, output_stride, 0.0, False).eval()
            maps = network(torch.empty(1, 3, side, side))
    except Exception as error:  # of any class, as each model has its own checks
        return str(error).strip().partition("\n")[0] or "timm refuses it"
    found = [side / each.shape[-1] for each in maps]
    return "" if found == targets else f"its strides would be {', '.join(f'{each:g}' for each in found)}"


@cache
def _drops_paths(name: str) -> bool:
    """Whether a model drops residual branches in training; some only accept the rate."""
    facts = timm_facts(name)
    rates: list[float] = []
    with torch.device("meta"):
        try:
            network = TimmNetwork(facts, TARGETS[-1], 0.5, False).train()
        except TypeError:  # the model has no such argument
            return False
        for module in network.net.modules():
            if isinstance(module, DropPath):
                module.register_forward_hook(lambda module, *_: rates.append(module.drop_prob))
        network(torch.empty(2, 3, max(2 * facts.unit, 128), facts.unit))
    return any(rates)


@cache
def _kept_bytes(name: str, gradient_checkpointing: bool) -> int:
    """The bytes that a model keeps for its backward pass in training, found on the meta device."""
    kept: dict[int, torch.Tensor] = {}
    facts = timm_facts(name)
    with torch.device("meta"):
        network = TimmNetwork(facts, TARGETS[-1], 0.0, gradient_checkpointing).train()

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            kept[id(tensor.untyped_storage())] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            side = max(2 * facts.unit, 128)
            try:
                features = network(torch.empty(2, 3, side, side))
            except (AssertionError, NotImplementedError):  # what timm raises where a model has no checkpoints
                if not gradient_checkpointing:
                    raise
                return _kept_bytes(name, False)
    del features
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
