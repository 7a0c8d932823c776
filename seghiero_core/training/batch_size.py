"""Memory: how much a network's training takes, the largest batch that fits, and what to do where none does."""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import nn

from seghiero_core.config.schema import Config
from seghiero_core.devices import available_bytes, peak_memory_mib
from seghiero_core.errors import DeviceError
from seghiero_core.losses.combine import HierarchicalLoss
from seghiero_core.training.optimizer import make_optimizer

MIB = 2**20
SHARE = 0.9  # of the memory that a batch found by trial may take; validation and fragments need some
ALLOCATOR = 1.5  # what a CPU step takes over the tensors that it keeps: workspaces, gradients on their way


def static_mib(model: nn.Module, *, ema: bool) -> dict[str, float]:
    """MiB of what every step needs, whatever the batch: weights, gradients, AdamW's two moments, the average."""
    weights = sum(t.nbytes for t in (*model.parameters(), *model.buffers())) / MIB
    learning = sum(p.nbytes for p in model.parameters() if p.requires_grad) / MIB
    return {"weights": weights, "gradients": learning, "optimizer": 2 * learning, "average": weights if ema else 0.0}


def out_of_memory(config: Config, model: nn.Module, device: torch.device) -> DeviceError:
    """The error for a run that ran out of memory: what its network takes, and what to try, the cheapest first."""
    training = config.training
    parts = static_mib(model, ema=bool(training.ema))
    listed = ", ".join(f"{name} {mib:.0f} MiB" for name, mib in parts.items() if mib)
    rest = max(0.0, peak_memory_mib(device) - sum(parts.values()))
    tries = []
    if not getattr(config.backbone, "gradient_checkpointing", False):
        tries.append("backbone.gradient_checkpointing: true")
    if training.precision not in ("bf16", "fp16"):
        tries.append("training.precision: bf16")
    if training.batch_size != "auto" and training.batch_size > 1:
        half, twice = training.batch_size // 2, training.gradient_accumulation * 2
        tries.append(f"training.batch_size: {half} with training.gradient_accumulation: {twice}")
    if config.head.type != "extremely_fast_segformer":
        tries.append("a lighter head (head.type: ultrafast_segformer or extremely_fast_segformer)")
    tries.append("a smaller transform.size or backbone")
    return DeviceError(
        f"{device} ran out of memory with batches of {1 if training.batch_size == 'auto' else training.batch_size}: "
        f"{listed}, and at the peak {rest:.0f} MiB for activations and all else. "
        f"In this order, try: {'; '.join(tries)}."
    )


def trial_step(
    model: nn.Module,
    loss: HierarchicalLoss,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    target: torch.Tensor,
    accelerator: Accelerator,
) -> None:
    """Forward, loss, backward and update on images B,3,H,W and a target B,H,W, for what they cost."""
    with accelerator.autocast():
        output = model(images)
    total, _ = loss(output.logits.float(), output.embedding, target, 0.0, output.auxiliary_logits)
    accelerator.backward(total)
    optimizer.step()
    optimizer.zero_grad()


def largest_batch(fits: Callable[[int], bool], most: int) -> int:
    """The largest power of two up to `most` that fits, 0 where not even 1 does."""
    batch = 0
    while max(1, 2 * batch) <= most and fits(max(1, 2 * batch)):
        batch = max(1, 2 * batch)
    return batch


def find_batch_size(
    config: Config, model: nn.Module, loss: HierarchicalLoss, accelerator: Accelerator, *, most: int
) -> int:
    """`training.batch_size: auto`: the largest power of two up to `most` whose training step fits every process.

    On a GPU by steps on random images, on the CPU by what one step keeps, against the memory that is free. The model
    and the random state come out as they went in. Raises DeviceError where one image is too much.
    """
    device, height_width = accelerator.device, config.transform.size
    kept = {name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}
    cpu_state = torch.get_rng_state()
    cuda_state = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    optimizer = make_optimizer(model, config.training, pretrained=False)
    model.train()

    def step(batch: int) -> None:
        images = torch.randint(0, 256, (batch, 3, *height_width), dtype=torch.uint8, device=device)
        target = torch.randint(0, len(loss.hierarchy.leaves), (batch, *height_width), device=device)
        trial_step(model, loss, optimizer, images, target, accelerator)

    def fits_gpu(batch: int) -> bool:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        try:
            step(batch)
        except torch.OutOfMemoryError:
            return False
        return torch.cuda.max_memory_reserved(device) <= SHARE * torch.cuda.get_device_properties(device).total_memory

    if device.type == "cuda":
        batch = largest_batch(fits_gpu, most)
    else:
        per_image = _kept_for_backward(lambda: step(2)) / 2
        static = sum(static_mib(model, ema=bool(config.training.ema)).values()) * MIB
        free = SHARE * available_bytes() / max(1, accelerator.num_processes) - static
        batch = largest_batch(lambda batch: batch * per_image * ALLOCATOR <= free, most)
    optimizer.zero_grad()
    optimizer.state.clear()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.set_rng_state(cuda_state, device)
    torch.set_rng_state(cpu_state)
    model.load_state_dict(kept)
    batches = accelerator.gather(torch.tensor([batch], device=device))
    if not (batch := int(batches.min())):
        raise out_of_memory(config, model, device)
    return batch


def _kept_for_backward(step: Callable[[], None]) -> int:
    """Bytes of the tensors that `step` keeps from its forward for its backward pass, shared storages once."""
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(storages.values())
