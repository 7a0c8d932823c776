"""How many validation images to compute at once: `training.val_batch_size`, found by measuring for "auto"."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Collection
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from seghiero_core.config.schema import Config
from seghiero_core.devices import available_bytes, is_out_of_memory
from seghiero_core.events import Notify
from seghiero_core.losses.combine import HierarchicalLoss
from seghiero_core.metrics.metrics import Metrics
from seghiero_core.model.measuring import MemoryLimit, count_images
from seghiero_core.model.tiling import DEFAULT_TILE
from seghiero_core.training.batch_size import CPU_OVERHEAD, MEMORY_SHARE, largest_batch, static_mib

_BATCH_PIXELS = 1 << 22
"""Largest batch, pixels: it keeps a GPU busy, and the few batches that the loaders hold stay below a gigabyte."""
_MEASURED_SIDE = 256
"""On the CPU, memory is measured on an image up to this size (px) and scaled by its pixels, which saves time."""


@torch.inference_mode()
def find_val_limit(
    config: Config,
    model: nn.Module,
    loss: HierarchicalLoss,
    accelerator: Accelerator,
    *,
    sizes: Collection[tuple[int, int]],
    samples: int,
    notify: Notify,
) -> MemoryLimit:
    """Find how much of a validation to compute at once, without training.

    For "auto" on a GPU, that is the largest power of two of images of the largest size that fits in every process,
    found by trying. On the CPU, where batches gain nothing, it is one image; whether that fits follows from the tensors
    that are alive at the same time and the free memory. The model and the random generators are left as they were.

    Args:
        config: The config of the run.
        model: The network, on its device.
        loss: Its loss, for what the logits mean.
        accelerator: Device, precision and processes.
        sizes: The sizes (H, W) of the validation images, px.
        samples: Their number.
        notify: Receives a warning where an image has to be computed in tiles.

    Returns:
        The limit.
    """
    wanted, device = config.training.val_batch_size, accelerator.device
    if wanted != "auto":
        return MemoryLimit(wanted)
    height, width = max(sizes, key=math.prod)
    was_training = model.training
    model.eval()

    def forward(images: torch.Tensor) -> tuple[torch.Tensor, int]:
        with accelerator.autocast():
            output = model(images.to(device), upsample=False)
        return output.logits.float(), output.stride

    def predict(batch: int, height: int, width: int) -> None:
        channels = config.dataset.channels
        images = torch.zeros(batch, channels or 3, height, width, dtype=torch.float32 if channels else torch.uint8)
        target = torch.zeros(batch, height, width, dtype=torch.int64)
        count_images(forward, images, target, [Metrics(loss.hierarchy)] * batch, scores=loss.scores)

    parts = static_mib(model, ema=bool(config.training.ema), optimizer=config.training.optimizer)
    to_come = (parts["optimizer"] + parts["average"]) * 2**20  # what training adds before the first validation
    if device.type == "cuda":
        most = _largest_useful_batch(sizes, math.ceil(samples / accelerator.num_processes))
        batch = largest_batch(lambda batch: _fits_gpu(lambda: predict(batch, height, width), device, to_come), most)
        torch.cuda.empty_cache()
    else:
        side = min(height, _MEASURED_SIDE), min(width, _MEASURED_SIDE)
        try:
            with _LiveBytes() as live:
                predict(1, *side)
            per_image = CPU_OVERHEAD * live.peak * (height * width) / math.prod(side)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            per_image = math.inf
        free = MEMORY_SHARE * available_bytes() / accelerator.num_processes - to_come
        batch = int(per_image <= free)
    model.train(was_training)
    smallest = int(accelerator.gather(torch.tensor([batch], device=device)).min())
    if smallest:
        return MemoryLimit(smallest)
    text = (
        f"a validation image of {height}x{width} px (HxW) doesn't fit in the memory of {device}: validation uses tiles "
        f"of {DEFAULT_TILE} px, and near their borders predictions may differ."
    )
    notify({"event": "warning", "text": text})
    return MemoryLimit(1, DEFAULT_TILE, reported=True)


def _largest_useful_batch(sizes: Collection[tuple[int, int]], samples: int) -> int:
    """Return the upper limit of the search: images of different sizes make no batch, large ones make small batches."""
    if len(sizes) > 1:
        return 1
    ((height, width),) = sizes
    return max(1, min(samples, _BATCH_PIXELS // (height * width)))


def _fits_gpu(predict: Callable[[], None], device: torch.device, to_come: float) -> bool:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    try:
        predict()
    except torch.OutOfMemoryError:
        return False
    total = torch.cuda.get_device_properties(device).total_memory
    return torch.cuda.max_memory_reserved(device) + to_come <= MEMORY_SHARE * total


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are created in its block and alive at the same time, at most `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in self._alive:
                    self._alive.add(storage._cdata)
                    self._now += storage.nbytes()
                    weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self._now)
        return result

    def _free(self, storage: int, size: int) -> None:
        self._alive.discard(storage)
        self._now -= size
