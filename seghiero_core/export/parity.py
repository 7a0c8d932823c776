"""Whether an exported file gives what the network gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from seghiero_core.checkpoint import Checkpoint
from seghiero_core.data.images import node_table, read_image, read_mask, to_nodes
from seghiero_core.data.samples import Sample, evenly_spaced, split_samples
from seghiero_core.errors import CheckFailed, DataError
from seghiero_core.export.graph import DecodedModel
from seghiero_core.export.runner import Runner
from seghiero_core.metrics.metrics import Metrics

SIZES = ((97, 131), (256, 320), (512, 512))
LARGEST = 1024
BATCH_SIZES = (1, 2)


@dataclass
class Parity:
    """Over all images compared.

    Attributes:
        max_abs_error: of the logits.
        max_abs_logit: for scale.
        argmax_agreement: by level, the share of pixels (0..1) that get the same class.
    """

    max_abs_error: float = 0.0
    max_abs_logit: float = 0.0
    argmax_agreement: dict[str, float] = field(default_factory=dict)


@torch.inference_mode()
def measure_parity(
    run: Runner,
    model: DecodedModel,
    images: Sequence[np.ndarray],
    dtype: str,
    sizes: Sequence[tuple[int, int]] = SIZES,
) -> Parity:
    """Compare on `images` (H,W,3 uint8), cropped or mirrored to each of `sizes` (H, W), in batches of BATCH_SIZES.

    `run` takes images of `dtype` (uint8 or float32) and gives `logits`, and the ids of every level unless it has none.
    """
    parity = Parity()
    levels = [level.name for level in model.hierarchy.levels]
    same = dict.fromkeys(levels, 0)
    pixels = 0
    for size in sizes:
        for first, count in enumerate(BATCH_SIZES):
            batch = np.stack([fitted(images[(first + i) % len(images)], size) for i in range(count)])
            batch = np.ascontiguousarray(batch.transpose(0, 3, 1, 2)).astype(dtype)
            expected = model(torch.from_numpy(batch))
            found = run(batch)
            logits = expected[0].numpy()
            error = np.abs(found["logits"] - logits).max()
            parity.max_abs_error = max(parity.max_abs_error, float(error) if np.isfinite(error) else float("inf"))
            parity.max_abs_logit = max(parity.max_abs_logit, float(np.abs(logits).max()))
            pixels += logits[:, 0].size
            for level, ids in zip(levels, _ids(found, model), strict=True):
                same[level] += int((ids == expected[1 + levels.index(level)].numpy()).sum())
    parity.argmax_agreement = {level: count / pixels for level, count in same.items()}
    return parity


def _ids(found: dict[str, np.ndarray], model: DecodedModel) -> list[np.ndarray]:
    names = [f"ids_{level.name}" for level in model.hierarchy.levels]
    if names[0] in found:
        return [found[name] for name in names]
    return [ids.numpy() for ids in model.written(model.decode(torch.from_numpy(found["logits"])))]


def natural_sizes(image: np.ndarray) -> list[tuple[int, int]]:
    """Three sizes (H, W) about that of `image`: its own up to LARGEST px a side, an odd one, and half of it."""
    height, width = (min(side, LARGEST) for side in image.shape[:2])
    return [(height, width), (3 * height // 4 | 1, 3 * width // 4 | 1), (-(-height // 2), -(-width // 2))]


def fitted(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """H,W,3 uint8 cropped to `size` (H, W), or continued by its mirror image; not scaled, which no model is used to."""
    missing = [(0, max(0, wanted - have)) for wanted, have in zip(size, image.shape, strict=False)]
    return np.pad(image, [*missing, (0, 0)], mode="symmetric")[: size[0], : size[1]]


GATES = {"fp32": (1e-4, 0.9999), "fp16": (1e-2, 0.995)}
"""By precision: the greatest error of the logits, the least share of pixels with the same class.

The error is absolute, for fp16 in units of the greatest logit where that is above 1: to round a logit of 10 to float16
costs 0.004 by itself."""


INT8_GATE = 0.01
"""The most that leaf mIoU (0..1) may lose."""


PARITY_IMAGES = 3


GATE_IMAGES = 200


CALIBRATION_IMAGES = 32


def check(run: Runner, model: DecodedModel, checkpoint: Checkpoint, precision: str, dtype: str) -> dict[str, Any]:
    """Compare an exported file, which takes images of `dtype`, with `model`; the measures as plain values.

    Images are those of the validation set, or random where there are none to be found. Raises CheckFailed for fp32
    and fp16 past GATES; for int8 where the leaf mIoU on the validation set falls by more than INT8_GATE.
    """
    found = _samples(checkpoint, "val")
    images = [read_image(sample.image) for sample in evenly_spaced(found, PARITY_IMAGES)]
    if not images:
        images = list(np.random.default_rng(0).integers(0, 256, (PARITY_IMAGES, 256, 320, 3), dtype=np.uint8))
    # A network far from what it was trained on amplifies rounding, so sizes follow the images where there are some.
    parity = measure_parity(run, model, images, dtype, natural_sizes(images[0]) if found else SIZES)
    row = {
        "max_abs_error": parity.max_abs_error,
        "max_abs_logit": parity.max_abs_logit,
        "argmax_agreement": min(parity.argmax_agreement.values()),
        "argmax_agreement_by_level": parity.argmax_agreement,
        "parity_images": "validation" if found else "random",
    }
    if precision == "int8":
        return row | _check_int8(run, model, dtype, found)
    most, least = GATES[precision]
    if precision == "fp16":
        most *= max(1.0, parity.max_abs_logit)
    # written so that a NaN fails
    if not (parity.max_abs_error <= most and row["argmax_agreement"] >= least):
        raise CheckFailed(
            f"{precision} parity failed, nothing was written: the logits differ by up to {parity.max_abs_error:.2e} "
            f"(allowed {most:g}, the largest logit is {parity.max_abs_logit:.1f}), and "
            f"{100 * row['argmax_agreement']:.3f} % of the pixels have the same class (at least {100 * least:g} %)."
            + (" Export without --fp16." if precision == "fp16" else "")
        )
    return row


def calibration_images(checkpoint: Checkpoint) -> list[np.ndarray]:
    """Training images, H,W,3 uint8, evenly from the whole set. Raises DataError where there are none."""
    found = _samples(checkpoint, "train")
    if not found or not _samples(checkpoint, "val"):
        raise DataError(
            f"--int8 is calibrated and measured on the run's data set, and {checkpoint.config.dataset.root} doesn't "
            "hold it (any more). Put it back, or export with --fp16 or as it is."
        )
    return [read_image(sample.image) for sample in evenly_spaced(found, CALIBRATION_IMAGES)]


def _check_int8(run: Runner, model: DecodedModel, dtype: str, samples: list[Sample]) -> dict[str, Any]:
    full, quantized = Metrics(model.hierarchy), Metrics(model.hierarchy)
    table = node_table(model.hierarchy)
    chosen = evenly_spaced(samples, GATE_IMAGES)
    with torch.inference_mode():
        for sample in chosen:
            image = np.ascontiguousarray(read_image(sample.image).transpose(2, 0, 1)[None]).astype(dtype)
            target = torch.from_numpy(to_nodes(read_mask(sample.mask), table))[None]
            full.update(model.decode(model(torch.from_numpy(image))[0]), target)
            quantized.update(model.decode(torch.from_numpy(run(image)["logits"])), target)
    before, after = (metrics.compute()["levels"][0]["miou"] or 0.0 for metrics in (full, quantized))
    if before - after > INT8_GATE:
        raise CheckFailed(
            f"int8 parity failed, nothing was written: leaf mIoU falls from {100 * before:.2f} to {100 * after:.2f} "
            f"points on {len(chosen)} validation images (allowed: {100 * INT8_GATE:g}). "
            "Export with --fp16, or as it is."
        )
    return {"miou_fp32": before, "miou_int8": after, "miou_images": len(chosen)}


def _samples(checkpoint: Checkpoint, split: str) -> list[Sample]:
    """The samples of a split, none where its folders aren't there or don't fit."""
    try:
        return split_samples(checkpoint.config.dataset, split)
    except DataError:
        return []
