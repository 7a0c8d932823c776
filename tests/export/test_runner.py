"""Running exported files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from seghiero_core import load
from seghiero_core.errors import CheckpointError, DeviceError
from seghiero_core.export.graph import keep_outputs
from seghiero_core.export.runner import make_session
from seghiero_core.predict.loading import _onnxruntime_errors as onnxruntime_errors
from support.masks import LEVELS


def test_tiles_and_augmentation_work_on_a_file(exported, tiny_run):
    image = np.asarray(
        Image.fromarray(np.random.default_rng(8).integers(0, 256, (9, 9, 3), np.uint8)).resize((200, 150))
    )
    options = {"tile": 96, "overlap": 32, "tta": ["flip", "scales"], "batch_size": 2, "device": "cpu"}
    by_file, by_checkpoint = load(exported, **options)(image), load(tiny_run, **options)(image)
    for level in LEVELS:
        assert (by_file.ids[level] == by_checkpoint.ids[level]).mean() > 0.999


def test_cuda_that_does_not_start_is_an_error(exported, monkeypatch):
    """onnxruntime itself falls back to the CPU where CUDA's libraries are missing."""
    plain = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda model, options, providers: plain(model, options, providers=["CPUExecutionProvider"]),
    )
    with pytest.raises(DeviceError, match="could not start CUDA on cuda:0.*--device cpu"):
        make_session(exported.read_bytes(), "cuda:0")
    assert make_session(exported.read_bytes(), "cpu").get_providers() == ["CPUExecutionProvider"]


def more_channels(model):
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 4


def newer_opset(model):
    model.opset_import[0].version = 99


def one_height(model):
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 8


def larger_logits(model):
    (node,) = (node for node in model.graph.node if "logits" in node.output)
    node.op_type = "Identity"
    node.ClearField("attribute")
    del node.input[1:]


@pytest.mark.parametrize("spoil", [more_channels, newer_opset, one_height, larger_logits])
def test_a_graph_that_fails_in_onnxruntime(exported, tmp_path, capfd, spoil):
    path = tmp_path / "a.onnx"
    model = onnx.load(exported)
    keep_outputs(model, ["logits"])
    spoil(model)
    onnx.save(model, path)
    capfd.readouterr()
    with pytest.raises(CheckpointError, match=r"a\.onnx(:| can't be run by onnxruntime) .*Export it again"):
        load(path, device="cpu")(np.zeros((40, 56, 3), np.uint8))
    assert capfd.readouterr() == ("", ""), "onnxruntime logs nothing"


def test_a_machine_without_memory_is_not_a_damaged_file():
    with pytest.raises(MemoryError), onnxruntime_errors(Path("a.onnx")):
        raise Exception("[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer of size 123")
