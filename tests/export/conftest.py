"""Fixtures of the export tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from seghiero_core import load
from seghiero_core.export import single_file
from seghiero_core.export.graph import DecodedModel, to_onnx
from seghiero_core.export.options import ExportOptions
from seghiero_core.export.single_file import export_checkpoint
from seghiero_core.model.segmentation import SegmentationOutput
from support.onnx_graphs import add_to_classifier_bias


@pytest.fixture
def run_export(run, tiny_run, tmp_path):
    """Runs `seghiero export TINY_RUN --onnx --out out.onnx ARGUMENTS`; gives (exit code, stdout, stderr)."""

    def run_command(*arguments: object, checkpoint: Path | None = tiny_run) -> tuple[int, str, str]:
        named = [] if checkpoint is None else [checkpoint]
        return run("export", *named, "--onnx", "--out", tmp_path / "out.onnx", *arguments)

    return run_command


@pytest.fixture(scope="session")
def exported(tiny_run, tmp_path_factory) -> Path:
    """The tiny run as an ONNX file."""
    path = tmp_path_factory.mktemp("exported") / "tiny.onnx"
    export_checkpoint(tiny_run / "best", path, ExportOptions())
    return path


@pytest.fixture
def network(tiny_run) -> Callable[..., DecodedModel]:
    """`network(mode)` is the tiny run's network with that decoding, as `load` would run it."""

    def build(mode: str = "leaf") -> DecodedModel:
        predictor = load(tiny_run, device="cpu")

        class Forward(torch.nn.Module):
            def forward(self, images):
                return SegmentationOutput(predictor.forward(images))

        return DecodedModel(Forward(), predictor.hierarchy, predictor.scores, mode)

    return build


@pytest.fixture
def spoil_export(monkeypatch) -> Callable[[float], None]:
    """`spoil_export(by)` makes every exported graph wrong by this much."""

    def spoil(by: float) -> None:
        monkeypatch.setattr(single_file, "to_onnx", lambda *arguments: add_to_classifier_bias(to_onnx(*arguments), by))

    return spoil
