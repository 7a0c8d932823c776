"""Measuring parity: how far an exported file's answers are from the network's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from seghiero_core.export.graph import DecodedModel
from seghiero_core.export.images import PARITY_SIZES
from seghiero_core.export.runner import Runner

BATCH_SIZES = (1, 2)


@dataclass
class Parity:
    """How an exported file compares with the network, over all images compared.

    Attributes:
        max_abs_error: The largest absolute difference between logits; infinite if the file gave a NaN.
        max_abs_logit: The largest absolute logit of the network, for scale.
        argmax_agreement: The share of pixels (0..1) that get the same class, by level name.
    """

    max_abs_error: float = 0.0
    max_abs_logit: float = 0.0
    argmax_agreement: dict[str, float] = field(default_factory=dict)


@torch.inference_mode()
def measure_parity(
    runner: Runner,
    model: DecodedModel,
    images: Sequence[np.ndarray],
    dtype: str,
    sizes: Sequence[tuple[int, int]] = PARITY_SIZES,
) -> Parity:
    """Compare an exported file with the network at every size, in batches of BATCH_SIZES.

    Args:
        runner: Runs the file. It gives `logits`, and the ids of every level unless the file has none.
        model: The network.
        images: H,W,N each.
        dtype: The file's input, "uint8" or "float32".
        sizes: The sizes (H, W) to crop the images to. Smaller images are extended by their mirror image, not scaled:
            no network is used to scaled images.

    Returns:
        The differences.
    """
    parity = Parity()
    levels = [level.name for level in model.hierarchy.levels]
    same = dict.fromkeys(levels, 0)
    pixels = 0
    for size in sizes:
        for first, count in enumerate(BATCH_SIZES):
            batch = np.stack([_crop_or_mirror(images[(first + i) % len(images)], size) for i in range(count)])
            batch = np.ascontiguousarray(batch.transpose(0, 3, 1, 2)).astype(dtype)
            logits, *rest = (output.numpy() for output in model(torch.from_numpy(batch)))
            found = runner(batch)
            error = np.abs(found["logits"] - logits).max()
            parity.max_abs_error = max(parity.max_abs_error, float(error) if np.isfinite(error) else float("inf"))
            parity.max_abs_logit = max(parity.max_abs_logit, float(np.abs(logits).max()))
            pixels += logits[:, 0].size
            expected_ids = rest[: len(levels)]
            for level, found_ids, ids in zip(levels, _found_ids(found, model), expected_ids, strict=True):
                same[level] += int((found_ids == ids).sum())
    parity.argmax_agreement = {level: count / pixels for level, count in same.items()}
    return parity


def _found_ids(found: dict[str, np.ndarray], model: DecodedModel) -> list[np.ndarray]:
    """The ids of every level; decoded from the logits if the file only has those."""
    names = [f"ids_{level.name}" for level in model.hierarchy.levels]
    if names[0] in found:
        return [found[name] for name in names]
    return [ids.numpy() for ids in model.file_ids(model.decode(torch.from_numpy(found["logits"])))]


def _crop_or_mirror(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """H,W,N cropped to `size` (H, W), or extended to it by its mirror image."""
    height, width = size
    below, right = max(0, height - image.shape[0]), max(0, width - image.shape[1])
    return np.pad(image, [(0, below), (0, right), (0, 0)], mode="symmetric")[:height, :width]
