"""An 8-bit ONNX graph: static quantization with onnxruntime, calibrated on images of the data set."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from PIL import Image

CALIBRATION_PIXELS = 1 << 19
"""Larger calibration images are shrunk to about so many pixels; the ranges of activations hardly depend on it."""
QUANTIZED = ("Conv", "Gemm", "MatMul")


def to_int8(model: onnx.ModelProto, images: Sequence[np.ndarray]) -> onnx.ModelProto:
    """`model` with 8-bit convolutions and linear layers: weights per channel, activations per tensor.

    `images` (H,W,3 uint8) give the activations' ranges. All else stays in float32: the classifier, the decoding after
    it, and the products inside attention, which 8 bits make less exact and no faster.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    root = logging.getLogger()
    before = root.level
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root.setLevel(logging.ERROR)
        try:
            source, prepared, target = (Path(folder) / f"{name}.onnx" for name in ("source", "prepared", "target"))
            onnx.save(model, source)
            # folds BatchNorm into the convolutions; symbolic shapes of free sizes are beyond it and not needed
            quant_pre_process(source, prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared,
                target,
                _Calibration(model, images),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_quantize=_layers(onnx.load(prepared)),
                calibrate_method=CalibrationMethod.MinMax,
                extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]},
            )
            return onnx.load(target)
        finally:
            root.setLevel(before)


class _Calibration:
    """The reader that onnxruntime asks for one input after the other."""

    def __init__(self, model: onnx.ModelProto, images: Sequence[np.ndarray]):
        is_uint8 = model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
        self.dtype = np.uint8 if is_uint8 else np.float32
        self.images = iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self.images, None)
        if image is None:
            return None
        height, width = image.shape[:2]
        scale = min(1.0, (CALIBRATION_PIXELS / (height * width)) ** 0.5)
        if scale < 1:
            size = (round(width * scale), round(height * scale))
            image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
        return {"image": np.ascontiguousarray(image.transpose(2, 0, 1)[None]).astype(self.dtype)}


def _layers(model: onnx.ModelProto) -> list[str]:
    """The names of the convolutions and linear layers that the logits come from, without the last, the classifier."""
    weights = {tensor.name for tensor in model.graph.initializer}
    needed, names = {"logits"}, []
    for node in reversed(model.graph.node):  # a node stands after those it needs
        if needed.intersection(node.output):
            needed.update(node.input)
            if node.op_type in QUANTIZED and node.input[1] in weights:
                names.append(node.name)
    return names[1:]
