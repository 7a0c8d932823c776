"""Gather the state of a model and its AdamW that FSDP divides into shards, and load it into shards again.

The functions of torch.distributed.checkpoint know how each tensor is sharded. What is written is the same as without
FSDP, so a run can be continued by another number of processes, or by one.
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
    """Gather the whole state in the main process, on the CPU; every process must call it.

    Args:
        model: The sharded model.
        optimizer: Its optimizer.

    Returns:
        The model's tensors by name, and the optimizer's by `parameter name/key`. Both are empty in other processes.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    tensors, state = get_state_dict(model, optimizer, options=options)
    state = state.get("state", {})
    return tensors, {f"{name}/{key}": value for name, values in state.items() for key, value in values.items()}


def gather_model(model: nn.Module) -> Tensors:
    """Gather the whole model in every process; every process must call it.

    Args:
        model: The sharded model.

    Returns:
        Its tensors by name.
    """
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))


def scatter_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], state: Tensors
) -> None:
    """Load what `gather_state` returned into shards; every process must call it, with the whole state.

    Args:
        model: The sharded model.
        optimizer: Its optimizer.
        tensors: The model's tensors by name.
        state: The optimizer's by `parameter name/key`.
    """
    options = StateDictOptions(full_state_dict=True)
    set_model_state_dict(model, dict(tensors), options=options)
    groups = get_optimizer_state_dict(model, optimizer, options=options)["param_groups"]
    by_name: dict[str, Tensors] = {}
    for name, value in state.items():
        parameter, _, key = name.rpartition("/")
        by_name.setdefault(parameter, {})[key] = value
    set_optimizer_state_dict(model, optimizer, {"state": by_name, "param_groups": groups}, options=options)
