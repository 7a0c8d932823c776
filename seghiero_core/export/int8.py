"""Quantizing an ONNX graph to 8 bits: static, with onnxruntime, calibrated on images of the data set."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch

from seghiero_core.data.transforms import resize_with_gaps
from seghiero_core.export.graph import no_exporter_output, required_nodes

CALIBRATION_PIXELS = 1 << 19
"""Larger calibration images are shrunk to about this many pixels; the ranges of activations hardly depend on it."""
QUANTIZED_OPERATORS = ("Conv", "Gemm", "MatMul")


def to_int8(model: onnx.ModelProto, images: Sequence[np.ndarray]) -> onnx.ModelProto:
    """Quantize the convolutions and linear layers of a graph, weights per channel and activations per tensor.

    The rest stays in float32: the classifier, the decoding after it, and the products inside attention, which would
    get less exact and no faster in 8 bits.

    Args:
        model: A graph with the value `logits`.
        images: Images to calibrate the ranges of activations on, H,W,N uint8 or float32 each.

    Returns:
        The quantized graph.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder, no_exporter_output():
        source, prepared, quantized = Path(folder, "source.onnx"), Path(folder, "prepared.onnx"), Path(folder, "q.onnx")
        onnx.save(model, source)
        # Folds BatchNorm into the convolutions. Symbolic shape inference fails on free sizes, and isn't needed.
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            quantized,
            _CalibrationReader(model, images),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=_layers_to_quantize(onnx.load(prepared)),
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]},
        )
        return onnx.load(quantized)


class _CalibrationReader:
    """Gives onnxruntime one input after the other (its CalibrationDataReader)."""

    def __init__(self, model: onnx.ModelProto, images: Sequence[np.ndarray]):
        is_uint8 = model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
        self.dtype = np.uint8 if is_uint8 else np.float32
        self.images = iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self.images, None)
        if image is None:
            return None
        height, width = image.shape[:2]
        scale = (CALIBRATION_PIXELS / (height * width)) ** 0.5
        if scale < 1:
            size = (round(height * scale), round(width * scale))
            image = resize_with_gaps(torch.from_numpy(image).permute(2, 0, 1), size).permute(1, 2, 0).numpy()
        return {"image": np.ascontiguousarray(image.transpose(2, 0, 1)[None]).astype(self.dtype)}


def _layers_to_quantize(model: onnx.ModelProto) -> list[str]:
    """The names of the convolutions and linear layers before the logits, without the last one, the classifier."""
    weights = {tensor.name for tensor in model.graph.initializer}
    layers = [
        node.name
        for node in required_nodes(model, ["logits"])
        if node.op_type in QUANTIZED_OPERATORS and node.input[1] in weights
    ]
    return layers[:-1]
