"""Memory: what the training of a network takes, the largest batch that fits, and advice where none does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from seghiero_core.config.schema import Config
from seghiero_core.devices import any_process, available_bytes, is_out_of_memory, peak_memory_mib
from seghiero_core.errors import DeviceError
from seghiero_core.losses.combine import HierarchicalLoss
from seghiero_core.training.optimizer import make_optimizer

MEMORY_SHARE = 0.9
"""The share of the memory that a batch found by trial may take; validation and fragmentation need the rest."""
CPU_OVERHEAD = 1.5
"""Memory of a CPU step relative to the tensors that it keeps: workspaces and temporary gradients come on top."""
_MIB = 2**20


def static_mib(model: nn.Module, *, ema: bool, optimizer: str) -> dict[str, float]:
    """Compute the memory that a training step needs whatever the batch.

    Args:
        model: The network.
        ema: Whether an average of the weights is kept.
        optimizer: adamw, which keeps two moments per weight, or sgd, which keeps one.

    Returns:
        MiB of "weights", "gradients", "optimizer" (its moments) and "average".
    """
    weights = sum(t.nbytes for t in (*model.parameters(), *model.buffers())) / _MIB
    learning = sum(p.nbytes for p in model.parameters() if p.requires_grad) / _MIB
    moments = {"adamw": 2, "sgd": 1}[optimizer] * learning
    return {"weights": weights, "gradients": learning, "optimizer": moments, "average": weights if ema else 0.0}


def out_of_memory_error(config: Config, model: nn.Module, device: torch.device) -> DeviceError:
    """Create the error for a run that ran out of memory.

    Args:
        config: The config of the run.
        model: Its network.
        device: The device whose memory ran out.

    Returns:
        An error that says what the network takes and what to try, the cheapest remedy first.
    """
    training = config.training
    parts = static_mib(model, ema=bool(training.ema), optimizer=training.optimizer)
    listed = ", ".join(f"{name} {mib:.0f} MiB" for name, mib in parts.items() if mib)
    rest = max(0.0, peak_memory_mib(device) - sum(parts.values()))
    remedies = []
    if not getattr(config.backbone, "gradient_checkpointing", False):
        remedies.append("backbone.gradient_checkpointing: true")
    if training.precision not in ("bf16", "fp16"):
        remedies.append("training.precision: bf16")
    if training.batch_size != "auto" and training.batch_size > 1:
        half, twice = training.batch_size // 2, training.gradient_accumulation * 2
        remedies.append(f"training.batch_size: {half} with training.gradient_accumulation: {twice}")
    if config.head.type != "extremely_fast_segformer":
        remedies.append("a lighter head (head.type: ultrafast_segformer or extremely_fast_segformer)")
    remedies.append("a smaller transform.size or backbone")
    return DeviceError(
        f"{device} ran out of memory with batches of {1 if training.batch_size == 'auto' else training.batch_size}: "
        f"{listed}, and at the peak {rest:.0f} MiB for activations and everything else. "
        f"Try, in this order: {'; '.join(remedies)}."
    )


def trial_step(
    model: nn.Module,
    loss: HierarchicalLoss,
    optimizer: torch.optim.Optimizer,
    inputs: Sequence[Any],
    target: torch.Tensor,
    accelerator: Accelerator,
) -> None:
    """Run forward, loss, backward and update once, to measure what they cost.

    Args:
        model: The network.
        loss: Its loss.
        optimizer: Its optimizer.
        inputs: The arguments of the network, such as images, B,N,H,W as the loader yields them.
        target: B,H,W int64, node indices.
        accelerator: For precision and backward.
    """
    with accelerator.autocast():
        output = model(*inputs, upsample=False)
    total, _ = loss(
        output.logits.float(),
        target,
        stride=output.stride,
        embedding=output.embedding,
        fraction=0.0,
        auxiliary_logits=output.auxiliary_logits,
        auxiliary_stride=output.auxiliary_stride,
        head_outputs=output.head_outputs,
    )
    accelerator.backward(total)
    optimizer.step()
    optimizer.zero_grad()


def largest_batch(fits: Callable[[int], bool], most: int) -> int:
    """Find the largest power of two that fits.

    Args:
        fits: Whether a batch size fits; called with 1, 2, 4, ... up to the first that doesn't.
        most: The upper limit.

    Returns:
        The batch size, 0 where not even 1 fits.
    """
    largest, candidate = 0, 1
    while candidate <= most and fits(candidate):
        largest, candidate = candidate, 2 * candidate
    return largest


def find_batch_size(
    config: Config, model: nn.Module, loss: HierarchicalLoss, accelerator: Accelerator, *, most: int
) -> int:
    """Find the batch size of `training.batch_size: auto`: the largest power of two whose step fits in every process.

    On a GPU it runs steps on random images; on the CPU it counts what one step keeps and compares with the memory that
    is free. The processes try the same sizes and decide together after each. The model and the random generators are
    left as they were.

    Args:
        config: The config of the run.
        model: The network, on its device. Its norms aren't synchronized yet: out of memory in one process, the others
            would wait for it forever.
        loss: Its loss.
        accelerator: Device, precision and processes.
        most: The upper limit.

    Returns:
        Images per process and batch.

    Raises:
        DeviceError: When not even one image fits.
    """
    device = accelerator.device
    kept = {name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}
    cpu_state = torch.get_rng_state()
    cuda_state = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    optimizer = make_optimizer(model, config.training, pretrained=False)
    model.train()
    step = partial(_random_step, config, model, loss, optimizer, accelerator)
    if device.type == "cuda":
        fits = partial(_fits_gpu, step, device)
    else:
        fits = _cpu_check(config, model, step, accelerator.num_processes)
    batch = largest_batch(lambda batch: not any_process(accelerator, not fits(batch))[0], most)
    optimizer.zero_grad()
    optimizer.state.clear()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.set_rng_state(cuda_state, device)
    torch.set_rng_state(cpu_state)
    model.load_state_dict(kept)
    if not batch:
        raise out_of_memory_error(config, model, device)
    return batch


def _random_step(
    config: Config,
    model: nn.Module,
    loss: HierarchicalLoss,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    batch: int,
) -> None:
    """Run a step on `batch` random images."""
    size, device = config.transform.size, accelerator.device
    images = torch.randint(0, 256, (batch, config.dataset.channels or 3, *size), dtype=torch.uint8, device=device)
    images = images.float() if config.dataset.channels else images
    target = torch.randint(0, len(loss.hierarchy.leaves), (batch, *size), device=device)
    trial_step(model, loss, optimizer, (images,), target, accelerator)


def _fits_gpu(step: Callable[[int], None], device: torch.device, batch: int) -> bool:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    try:
        step(batch)
    except torch.OutOfMemoryError:
        return False
    total = torch.cuda.get_device_properties(device).total_memory
    return torch.cuda.max_memory_reserved(device) <= MEMORY_SHARE * total


def _cpu_check(config: Config, model: nn.Module, step: Callable[[int], None], processes: int) -> Callable[[int], bool]:
    """Return whether a batch size fits into this process's share of the free memory; none does if the trial doesn't."""
    try:
        per_image = _kept_for_backward(partial(step, 2)) / 2
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return lambda batch: False
    parts = static_mib(model, ema=bool(config.training.ema), optimizer=config.training.optimizer)
    free = MEMORY_SHARE * available_bytes() / processes - sum(parts.values()) * _MIB
    return lambda batch: batch * per_image * CPU_OVERHEAD <= free


def _kept_for_backward(step: Callable[[], None]) -> int:
    """Return the bytes of the tensors that `step` keeps from forward to backward, shared storages counted once."""
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(storages.values())
