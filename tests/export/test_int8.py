"""`seghiero export --int8`: what is quantized, and what stays exact."""

from __future__ import annotations

import json
import re

import numpy as np
import onnx
import torch

from seghiero_core import load
from seghiero_core.export import int8
from seghiero_core.export.graph import DecodedModel, to_onnx, trace
from seghiero_core.export.options import DEFAULT_OPSET
from seghiero_core.export.runner import onnx_runner
from seghiero_core.model.factories import build_model
from support.masks import LEVELS


def test_layers_are_in_8_bit(run_export, tmp_path):
    code, out, err = run_export("--int8", "--json")
    row = json.loads(out)
    assert code == 0 and re.fullmatch(r"checkpoint: .*/best \(step-\d+\)\n", err)
    assert row["miou_fp32"] - row["miou_int8"] <= 0.01 and row["miou_images"] == 24 and row["argmax_agreement"] > 0.8
    graph = onnx.load(tmp_path / "out.onnx").graph
    assert sum(node.op_type == "DequantizeLinear" for node in graph.node) > 10
    assert {tensor.data_type for tensor in graph.initializer} >= {onnx.TensorProto.INT8}
    assert load(tmp_path / "out.onnx", device="cpu")(np.zeros((40, 50, 3), np.uint8)).ids["leaf"].shape == (40, 50)


def test_decoding_is_exact(run_export, network, tmp_path):
    """Only the network is in 8 bits: classes and confidence are those of the file's own logits, at every level."""
    assert run_export("--int8", "--decode", "top_down")[0] == 0
    model = network("top_down")
    rng = np.random.default_rng(0)
    found = onnx_runner(tmp_path / "out.onnx")(rng.integers(0, 256, (2, 3, 70, 90), dtype=np.uint8))
    decoded = model.decode(torch.from_numpy(found["logits"]))
    for number, level in enumerate(LEVELS):
        assert (found[f"ids_{level}"] == decoded.ids[number].numpy()).mean() > 0.9999
        np.testing.assert_allclose(found[f"confidence_{level}"], decoded.confidence[number].numpy(), atol=1e-5)


def test_products_inside_attention_stay_in_float32(camvid_hierarchy):
    config = {"backbone": {"type": "segformer", "variant": "mit-b0"}, "head": {"type": "segformer"}}
    model = build_model(config, len(camvid_hierarchy.leaves), embedding=False)
    decoded = DecodedModel(model, camvid_hierarchy, "softmax", "leaf").eval()
    graph = to_onnx(trace(decoded, torch.uint8), camvid_hierarchy, DEFAULT_OPSET)
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    quantized = int8.to_int8(graph, [image]).graph
    made_by = {output: node for node in quantized.node for output in node.output}
    products = [node for node in quantized.node if node.op_type == "MatMul"]
    in_8_bit = [
        all(name in made_by and made_by[name].op_type == "DequantizeLinear" for name in node.input) for node in products
    ]
    attention = 2 * 8  # MiT-B0 has four stages of two blocks
    levels = len(camvid_hierarchy.levels) - 1
    assert len(in_8_bit) - sum(in_8_bit) == attention + levels and sum(in_8_bit) > attention
