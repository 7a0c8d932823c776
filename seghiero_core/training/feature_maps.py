"""What a frozen backbone computes from an image, in a form that can be stored and read again bit for bit."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import default_collate


def images_at_once(device: torch.device, batch_size: int) -> int:
    """Return how many images go through a frozen backbone together.

    On the CPU the bits of a result may depend on the number of images that are computed together, and batches gain
    little. So it is one image there, and what is computed from an image depends on nothing else.

    Args:
        device: The device.
        batch_size: `training.batch_size`.

    Returns:
        The number.
    """
    return 1 if device.type == "cpu" else batch_size


@torch.no_grad()
def compute_maps(
    model: nn.Module, images: torch.Tensor, accelerator: Accelerator, read: Collection[int] | None = None
) -> list[dict[str, Any]]:
    """Run the frozen backbone, and pack the maps of each image.

    A packed map is contiguous, with the dimensions in the order of the strides that the backbone gave it. So the head
    gets the same values in the same memory layout, whether or not they were stored meanwhile.

    Args:
        model: The network, in the mode that `set_training_mode` gives it.
        images: B,N,H,W on the device of the network.
        accelerator: For the precision.
        read: The positions of the maps to keep; of the others only size and type are kept. Default: all.

    Returns:
        For each image "maps" by position, as text; "shapes" (M,3: channels, height and width); and "orders" (M,3: the
        dimensions of a packed map).
    """
    with accelerator.autocast():
        maps = model.features(images)
    orders = [sorted(range(3), key=[-stride for stride in each.stride()[1:]].__getitem__) for each in maps]
    return [
        {
            "maps": {
                str(m): each[i].permute(order).contiguous() if read is None or m in read else each.new_empty(0)
                for m, (each, order) in enumerate(zip(maps, orders, strict=True))
            },
            "shapes": torch.tensor([each.shape[1:] for each in maps]),
            "orders": torch.tensor(orders),
        }
        for i in range(len(images))
    ]


def unpack_maps(batch: Mapping[str, Any], device: torch.device) -> list[torch.Tensor]:
    """Restore the maps of a batch.

    Args:
        batch: What `compute_maps` returned for each image, collated: with "maps", "shapes" and "orders".
        device: Where the maps are to be.

    Returns:
        What `SegmentationModel.features` returned, each map B,c,h,w. One that was not kept takes no memory and holds
        zeros.
    """
    features = []
    shapes, orders = batch["shapes"][0].tolist(), batch["orders"][0].tolist()
    for m, (shape, order) in enumerate(zip(shapes, orders, strict=True)):
        packed = batch["maps"][str(m)].to(device, non_blocking=True)
        if packed.numel():
            features.append(packed.permute(0, *(order.index(axis) + 1 for axis in range(3))))
        else:
            features.append(packed.new_zeros(1).expand(len(packed), *shape))
    return features


def divided_features(
    model: nn.Module, images: torch.Tensor, accelerator: Accelerator, at_once: int
) -> list[torch.Tensor]:
    """Compute the features of a batch as they would be stored.

    Args:
        model: The network, in the mode that `set_training_mode` gives it.
        images: B,N,H,W on the device of the network.
        accelerator: For the precision.
        at_once: How many images to compute together.

    Returns:
        What `SegmentationModel.features` would return for all of them, each map B,c,h,w.
    """
    samples = [sample for part in images.split(at_once) for sample in compute_maps(model, part, accelerator)]
    return unpack_maps(default_collate(samples), images.device)
