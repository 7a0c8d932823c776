"""Running exported files."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from seghiero_core import load
from seghiero_core.errors import DeviceError
from seghiero_core.export.runner import make_session
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
