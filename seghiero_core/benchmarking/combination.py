"""Measuring one combination of backbone and head, in this process: speed, latency, memory, parameters and FLOPs."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from seghiero_core.benchmarking.memory import MemoryMeter
from seghiero_core.benchmarking.timing import Call, percentile_ms, time_repeatedly
from seghiero_core.config.schema import Config
from seghiero_core.decode import decode
from seghiero_core.devices import make_accelerator
from seghiero_core.events import Notify, ignore_events
from seghiero_core.losses.combine import HierarchicalLoss, build_loss
from seghiero_core.model.factories import build_model, build_trained_model
from seghiero_core.model.folding import fold_batch_norms
from seghiero_core.training.batch_size import trial_step
from seghiero_core.training.optimizer import make_optimizer

WARM_UP = 2
"""Steps before those that are measured."""


def _attention_flops(query, key, value, *_, **__) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward_flops(grad, query, key, value, *_, **__) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


# PyTorch's counter knows the attention kernels of GPUs only.
_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        seconds: Measure each task for that long, but for at least three steps.
        repeats: Measure so many steps instead.
        threads: Threads of PyTorch on the CPU. None leaves their number to PyTorch.
    """

    seconds: float = 3.0
    repeats: int | None = None
    threads: int | None = None


def count_flops(run: Call) -> int:
    """Count the floating-point operations of a function's matrix products and convolutions.

    A multiplication with an addition counts as 2. Elementwise operations, norms and resizing aren't counted.

    Args:
        run: The function.

    Returns:
        FLOPs.
    """
    with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
        run()
    return counter.get_total_flops()


def measure_combination(config: Config, effort: Effort, notify: Notify = ignore_events) -> dict[str, Any]:
    """Measure training steps, and predictions of batches and of single images, on random images with random weights.

    A training step is forward pass, loss, backward pass and update, without loading data. A prediction is forward pass
    and decoding. Call it in a process of its own, because memory that an earlier call has freed may be used again.

    Args:
        config: The config, whose `transform.size` and `training.batch_size` are those of the images.
        effort: How long to measure.
        notify: Receives {"event": "stage", "stage"} with the name of each task as it begins.

    Returns:
        "device", "precision", "threads", "parameters" (of the network that predicts), "flops" (of its forward pass for
        one image), "memory_is" (what the peaks are), and for "training", "prediction" and "single_image" the
        "images_per_second", "p50_ms", "p95_ms" and "repeats", for the first two also the "peak_mib".

    Raises:
        SeghieroError: Whatever building the network raises.
    """
    if effort.threads:
        torch.set_num_threads(effort.threads)
    training = config.training
    accelerator = make_accelerator(training.device, training.precision)
    set_seed(training.seed)
    offline = config.backbone.model_copy(update={"pretrained": False})
    config = config.model_copy(update={"backbone": offline, "init_from": None})
    found: dict[str, Any] = {
        "device": str(accelerator.device),
        "precision": "fp32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision,
        "threads": torch.get_num_threads(),
    }
    notify({"event": "stage", "stage": "training"})
    # First, since on the CPU its memory would otherwise include what predicting has left behind.
    found["training"], loss, tensors = _measure_training(config, accelerator, effort)
    network = _place(build_trained_model(config, loss.num_channels, tensors), config, accelerator.device)
    del tensors
    network.requires_grad_(False)  # else counting FLOPs fails where a module is called with its own parameters
    found["parameters"] = sum(parameter.numel() for parameter in network.parameters())
    with torch.inference_mode():
        found["flops"] = count_flops(partial(network, _random_images(config, 1, accelerator.device)))
    fold_batch_norms(network)  # as `predict` does
    if training.compile:
        network.compile()
    for stage, batch in (("prediction", int(training.batch_size)), ("single_image", 1)):
        notify({"event": "stage", "stage": stage.replace("_", " ")})
        run = _prediction(network, config, loss, accelerator, batch)
        meter = MemoryMeter(accelerator.device)
        found[stage] = _time(run, batch, accelerator.device, effort)
        if stage == "prediction":
            found[stage]["peak_mib"] = meter.peak_mib()
        found["memory_is"] = meter.meaning
    return found


def _measure_training(
    config: Config, accelerator: Accelerator, effort: Effort
) -> tuple[dict[str, Any], HierarchicalLoss, dict[str, torch.Tensor]]:
    """Return the measurements of training steps, the loss, and the weights on the CPU."""
    training, leaves = config.training, len(config.hierarchy.leaves)
    make_loss = partial(build_loss, config.loss, config.hierarchy, counts=np.ones(leaves), validate=False)
    loss = make_loss()
    network = build_model(config, loss.num_channels, embedding=loss.uses_embedding, auxiliary=loss.auxiliary > 0)
    loss = make_loss(head_loss=getattr(network.head, "loss", None))
    network = _place(network, config, accelerator.device)
    optimizer = make_optimizer(network, training, pretrained=False)
    if training.compile:
        network.compile()
    wrapped, optimizer = accelerator.prepare(network, optimizer)
    wrapped.train()
    batch = int(training.batch_size)
    images = _random_images(config, batch, accelerator.device)
    target = torch.randint(0, leaves, (batch, *config.transform.size), device=accelerator.device)

    def step() -> None:
        trial_step(wrapped, loss, optimizer, (images,), target, accelerator)

    meter = MemoryMeter(accelerator.device)
    measured = _time(step, batch, accelerator.device, effort)
    measured["peak_mib"] = meter.peak_mib()
    tensors = {name: tensor.cpu() for name, tensor in network.state_dict().items()}
    accelerator.free_memory()
    gc.collect()
    return measured, loss, tensors


def _prediction(
    network: nn.Module, config: Config, loss: HierarchicalLoss, accelerator: Accelerator, batch: int
) -> Callable[[], None]:
    images = _random_images(config, batch, accelerator.device)
    if config.training.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def predict() -> None:
        with accelerator.autocast():
            logits = network(images).logits.float()
        decode(logits, config.hierarchy, scores=loss.scores)

    return predict


def _place(network: nn.Module, config: Config, device: torch.device) -> nn.Module:
    if config.training.channels_last:
        network = network.to(memory_format=torch.channels_last)
    return network.to(device)


def _random_images(config: Config, batch: int, device: torch.device) -> torch.Tensor:
    channels = config.dataset.channels
    images = torch.randint(0, 256, (batch, channels or 3, *config.transform.size), dtype=torch.uint8, device=device)
    return images.float() if channels else images


def _time(run: Call, batch: int, device: torch.device, effort: Effort) -> dict[str, Any]:
    for _ in range(WARM_UP):
        run()
    seconds = time_repeatedly(run, device, seconds=effort.seconds, repeats=effort.repeats)
    median = percentile_ms(seconds, 50)
    return {
        "images_per_second": 1000 * batch / median,
        "p50_ms": median,
        "p95_ms": percentile_ms(seconds, 95),
        "repeats": len(seconds),
    }
