"""The gates an exported file has to pass: how far its answers may be from the network's."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from seghiero_core.checkpoint import Checkpoint
from seghiero_core.data.samples import evenly_spaced
from seghiero_core.errors import CheckFailed, DataError
from seghiero_core.export.graph import DecodedModel
from seghiero_core.export.images import available_samples, parity_images
from seghiero_core.export.parity import Parity, measure_parity
from seghiero_core.export.runner import Runner
from seghiero_core.metrics.metrics import Metrics


class Gate(NamedTuple):
    """Limits for the parity of a file.

    Attributes:
        max_error: The largest allowed difference between logits, relative to the largest logit where that is above 1:
            rounding grows with the numbers.
        min_agreement: The smallest allowed share of pixels (0..1) with the same class, at every level.
    """

    max_error: float
    min_agreement: float


GATES = {"fp32": Gate(1e-4, 0.9999), "fp16": Gate(1e-2, 0.995)}
"""The gate of each precision. An int8 file is judged by INT8_GATE instead."""
INT8_GATE = 0.01
"""The most that leaf mIoU (0..1) may drop in 8 bits."""
INT8_GATE_IMAGES = 200


def check_parity(
    runner: Runner, model: DecodedModel, checkpoint: Checkpoint, precision: str, dtype: str
) -> dict[str, Any]:
    """Compare an exported file with the network it came from.

    Args:
        runner: Runs the file.
        model: The network.
        checkpoint: The exported checkpoint, whose data set gives the images.
        precision: "fp32", "fp16" or "int8".
        dtype: The file's input, "uint8" or "float32".

    Returns:
        The measurements: "max_abs_error", "max_abs_logit", "argmax_agreement" (of the worst level),
        "argmax_agreement_by_level" and "parity_images" ("validation", or "random" where the data set is missing); for
        int8 also "miou_fp32", "miou_int8" and "miou_images".

    Raises:
        DataError: The network's mIoU on the validation masks is 0 or undefined, so it can't judge an int8 file.
        CheckFailed: The file doesn't pass the gate of its precision.
    """
    images, sizes, source = parity_images(checkpoint)
    parity = measure_parity(runner, model, images, dtype, sizes)
    row = {
        "max_abs_error": parity.max_abs_error,
        "max_abs_logit": parity.max_abs_logit,
        "argmax_agreement": min(parity.argmax_agreement.values()),
        "argmax_agreement_by_level": parity.argmax_agreement,
        "parity_images": source,
    }
    if precision == "int8":
        return row | _check_int8(runner, model, checkpoint, dtype)
    _check_gate(parity, precision)
    return row


def _check_gate(parity: Parity, precision: str) -> None:
    """The gate of fp32 and fp16 files."""
    gate = GATES[precision]
    max_error = gate.max_error * max(1.0, parity.max_abs_logit)
    agreement = min(parity.argmax_agreement.values())
    if parity.max_abs_error <= max_error and agreement >= gate.min_agreement:
        return
    advice = "Export without --fp16." if precision == "fp16" else "Try another format (--onnx or --pt2)."
    raise CheckFailed(
        f"{precision} parity failed, nothing was written: the logits differ by up to {parity.max_abs_error:.2e} "
        f"(allowed: {max_error:.2e}; the largest logit is {parity.max_abs_logit:.1f}), and {100 * agreement:.3f} % of "
        f"the pixels get the same class (required: {100 * gate.min_agreement:g} %). {advice}"
    )


def _check_int8(runner: Runner, model: DecodedModel, checkpoint: Checkpoint, dtype: str) -> dict[str, Any]:
    """The gate of int8 files, on validation images with their masks."""
    full, quantized = Metrics(model.hierarchy), Metrics(model.hierarchy)
    samples = evenly_spaced(available_samples(checkpoint, "val"), INT8_GATE_IMAGES)
    hierarchy = checkpoint.config.hierarchy
    with torch.inference_mode():
        for sample in samples:
            image, target = sample.read(hierarchy)
            image = np.ascontiguousarray(image.transpose(2, 0, 1)[None]).astype(dtype)
            target = torch.from_numpy(target)[None]
            full.update(model.decode(model(torch.from_numpy(image))[0]), target)
            quantized.update(model.decode(torch.from_numpy(runner(image)["logits"])), target)
    before, after = (metrics.compute()["levels"][0]["miou"] for metrics in (full, quantized))
    if not before:
        reason = (
            f"none of the {len(samples)} validation masks has a pixel labeled with a leaf"
            if before is None
            else f"the network itself reaches 0.00 points on the {len(samples)} validation images"
        )
        raise DataError(
            f"--int8 is checked by leaf mIoU on the run's validation images, and {reason}: nothing was compared or "
            "written. Use validation images whose labels the network predicts, or export without --int8."
        )
    if before - after > INT8_GATE:
        raise CheckFailed(
            f"int8 parity failed, nothing was written: leaf mIoU drops from {100 * before:.2f} to {100 * after:.2f} "
            f"points on {len(samples)} validation images (allowed: {100 * INT8_GATE:g}). "
            "Export with --fp16, or without --int8."
        )
    return {"miou_fp32": before, "miou_int8": after, "miou_images": len(samples)}
