"""The whole state of a model and its AdamW that FSDP holds in shards, out of them and back.

By torch.distributed.checkpoint's state dict functions, which know how each tensor lies; what is written is the same
as without FSDP, so that a run can go on with another number of processes, or with one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

Tensors = dict[str, torch.Tensor]


def gather_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Tensors, Tensors]:
    """The model's tensors, and the optimizer's by `parameter name/key`: whole, on the CPU, in the main process.

    Every process must call it; the others get nothing.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    tensors, state = get_state_dict(model, optimizer, options=options)
    state = state.get("state", {})
    return tensors, {f"{name}/{key}": value for name, values in state.items() for key, value in values.items()}


def gather_model(model: nn.Module) -> Tensors:
    """The model's tensors, whole, in every process; every process must call it."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))


def scatter_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], state: Tensors
) -> None:
    """Put what `gather_state` gave back into shards. Every process must call it, with the whole state."""
    options = StateDictOptions(full_state_dict=True)
    set_model_state_dict(model, dict(tensors), options=options)
    groups = get_optimizer_state_dict(model, optimizer, options=options)["param_groups"]
    by_name: dict[str, Tensors] = {}
    for name, value in state.items():
        parameter, _, key = name.rpartition("/")
        by_name.setdefault(parameter, {})[key] = value
    set_optimizer_state_dict(model, optimizer, {"state": by_name, "param_groups": groups}, options=options)
