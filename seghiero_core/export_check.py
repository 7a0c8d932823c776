"""What an exported file has to pass before it gets its name, and the images that it is checked on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from seghiero_core.checkpoint import Checkpoint
from seghiero_core.data.images import node_table, read_image, read_mask, to_nodes
from seghiero_core.data.samples import Sample, split_samples
from seghiero_core.errors import CheckFailed, DataError
from seghiero_core.export_graph import DecodedModel
from seghiero_core.metrics import Metrics
from seghiero_core.parity import SIZES, Run, measure_parity, natural_sizes

GATES = {"fp32": (1e-4, 0.9999), "fp16": (1e-2, 0.995)}
"""By precision: the greatest error of the logits, the least share of pixels with the same class.

The error is absolute, for fp16 in units of the greatest logit where that is above 1: to round a logit of 10 to float16
costs 0.004 by itself."""
INT8_GATE = 0.01
"""The most that leaf mIoU (0..1) may lose."""
PARITY_IMAGES = 3
GATE_IMAGES = 200
CALIBRATION_IMAGES = 32


def check(run: Run, model: DecodedModel, checkpoint: Checkpoint, precision: str, dtype: str) -> dict[str, Any]:
    """Compare an exported file, which takes images of `dtype`, with `model`; the measures as plain values.

    Images are those of the validation set, or random where there are none to be found. Raises CheckFailed for fp32
    and fp16 past GATES; for int8 where the leaf mIoU on the validation set falls by more than INT8_GATE.
    """
    found = _samples(checkpoint, "val")
    images = [read_image(sample.image) for sample in _spread(found, PARITY_IMAGES)]
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
    return [read_image(sample.image) for sample in _spread(found, CALIBRATION_IMAGES)]


def _check_int8(run: Run, model: DecodedModel, dtype: str, samples: list[Sample]) -> dict[str, Any]:
    full, quantized = Metrics(model.hierarchy), Metrics(model.hierarchy)
    table = node_table(model.hierarchy)
    chosen = _spread(samples, GATE_IMAGES)
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


def _spread(samples: list[Sample], count: int) -> list[Sample]:
    """At most `count` samples, evenly from the first to the last."""
    return samples if len(samples) <= count else [samples[i * len(samples) // count] for i in range(count)]
