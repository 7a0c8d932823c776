"""Several processes: that they are as many as were asked for, and that they decide alike."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from accelerate import Accelerator

from seghiero_core.errors import DeviceError


def check_processes(actual: int, wanted: int | None, *, sharded: bool = False) -> None:
    """Raise DeviceError where the launcher or `training.processes` (`wanted`) asked for other processes, or for shards.

    `accelerate launch --cpu --num_processes 2` starts one process without a word; what gives it away is a
    rendezvous address without a world size.
    """
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and not sharded:
        raise DeviceError("FSDP was asked for, and accelerate shards over several GPUs only; leave it out here.")
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if "WORLD_SIZE" not in os.environ and {"MASTER_ADDR", "ACCELERATE_MIXED_PRECISION"} <= os.environ.keys():
        raise DeviceError(
            f"accelerate launch was asked for several processes and started {actual}. "
            "On the CPU use: torchrun --nproc-per-node 2 -m seghiero_cli train CFG."
        )
    if actual != launched:
        raise DeviceError(
            f"the launcher asked for {launched} processes, and this is a run of {actual}. "
            f"Start it with: torchrun --nproc-per-node {launched} -m seghiero_cli train CFG."
        )
    if wanted is not None and actual != wanted:
        raise DeviceError(
            f"training.processes: {wanted} were asked for, and this is a run of {actual}. "
            f"Start it with: torchrun --nproc-per-node {wanted} -m seghiero_cli train CFG."
        )


def any_process(accelerator: Accelerator, *flags: bool) -> list[bool]:
    """Each flag, true where it is true in at least one process; every process must call it at the same place."""
    if accelerator.num_processes == 1:
        return list(flags)
    counts = torch.tensor(flags, dtype=torch.int64, device=accelerator.device)
    return [count > 0 for count in accelerator.reduce(counts, "sum").tolist()]


def mean_over_processes(accelerator: Accelerator, values: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Each value (a scalar tensor), averaged over the processes; every process must call it at the same place."""
    stacked = torch.stack([value.detach().float() for value in values.values()])
    if accelerator.num_processes > 1:
        stacked = accelerator.reduce(stacked, "mean")
    return dict(zip(values, stacked.tolist(), strict=True))


def is_lost_peer(error: BaseException) -> bool:
    """Whether a collective failed because another process of the run is gone."""
    words = ("connection closed by peer", "connection reset by peer", "socket closed", "connection refused")
    return isinstance(error, RuntimeError) and (
        type(error).__name__ == "DistBackendError" or any(word in str(error).lower() for word in words)
    )
