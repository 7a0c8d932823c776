"""Export: a checkpoint as one file, ONNX or torch.export, checked against the network before it gets its name."""

from __future__ import annotations

import copy
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch

from seghiero_core import __version__
from seghiero_core.checkpoint import Checkpoint
from seghiero_core.decodings import MODES, check_decoding, undecided_id
from seghiero_core.errors import UsageError, nearest
from seghiero_core.export_check import calibration_images, check
from seghiero_core.export_graph import (
    DecodedModel,
    HalfPrecision,
    check_opset,
    class_metadata,
    keep_outputs,
    output_names,
    set_metadata,
    to_onnx,
    trace,
)
from seghiero_core.export_pt2 import pt2_run, to_pt2
from seghiero_core.parity import onnx_run
from seghiero_core.trained import load_trained

OPSETS = range(18, 24)
DEFAULT_OPSET = 20


@dataclass(frozen=True)
class ExportOptions:
    """What to export.

    Attributes:
        format: onnx or pt2.
        precision: fp32, fp16 or int8 (ONNX only).
        input: uint8, or float32 with the same values 0..255.
        outputs: "masks" (ids and confidence of every level) or "logits".
        mode: a decoding of MODES.
        confidence: a threshold in 0..1 to back off from, see `decode`; None or 0 for none.
        opset: of OPSETS, ONNX only; None is DEFAULT_OPSET, see `onnx_opset`.
    """

    format: str = "onnx"
    precision: str = "fp32"
    input: str = "uint8"
    outputs: str = "masks"
    mode: str = "leaf"
    confidence: float | None = None
    opset: int | None = None

    @property
    def onnx_opset(self) -> int:
        """The opset that was asked for, or the default."""
        return DEFAULT_OPSET if self.opset is None else self.opset

    def check(self) -> None:
        """Raise UsageError for a value that there isn't, or that the format has not."""
        if self.format == "pt2" and (self.precision == "int8" or self.opset is not None):
            flag = "--opset" if self.opset is not None else "--int8"
            raise UsageError(f"{flag} is for ONNX; leave it out, or leave out --pt2.")
        for flag, value, known in (
            ("--input", self.input, ("uint8", "float32")),
            ("--outputs", self.outputs, ("masks", "logits")),
            ("--decode", self.mode, tuple(MODES)),
            ("--opset", str(self.onnx_opset), tuple(str(opset) for opset in OPSETS)),
        ):
            if value not in known:
                raise UsageError(f"{flag} {value}: unknown.{nearest(value, known)} Known: {', '.join(known)}.")
        check_decoding(self.mode, self.confidence)


def export_checkpoint(folder: Path, out: Path, options: ExportOptions) -> dict[str, Any]:
    """Write the checkpoint in `folder` to `out` and return what was measured.

    The file gets its name only when it has passed `export_check.check`.
    Raises UsageError for an unknown option, CheckpointError, DataError where int8 finds no data, CheckFailed.
    """
    options.check()
    checkpoint, hierarchy, scores, network = load_trained(folder, "cpu")
    model = DecodedModel(network, hierarchy, scores, options.mode, options.confidence or None).eval()
    with torch.no_grad():  # also raises here, not in the midst of tracing, where the decoding doesn't fit the scores
        channels = model(torch.zeros(1, 3, 64, 64))[0].shape[1]
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        partial.touch()  # a folder that can't be written to is known before minutes of work
        traced = copy.deepcopy(model)
        if options.precision == "fp16":
            traced.model.backbone = HalfPrecision(traced.model.backbone)
        metadata = _metadata(model, channels, checkpoint, options)
        if options.format == "pt2":
            content, outputs = to_pt2(traced, getattr(torch, options.input), options.outputs, metadata)
        else:
            graph = _graph(traced, checkpoint, options)
            set_metadata(graph, metadata)
            content, outputs = graph.SerializeToString(), [output.name for output in graph.graph.output]
        partial.write_bytes(content)
        run = pt2_run(partial) if options.format == "pt2" else onnx_run(partial)
        row = check(run, model, checkpoint, options.precision, options.input)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return {
        "path": str(out),
        "checkpoint": str(folder),
        **({} if options.format == "pt2" else {"opset": options.onnx_opset}),
        "precision": options.precision,
        "input": options.input,
        "outputs": outputs,
        "mib": round(out.stat().st_size / 2**20, 2),
        **row,
    }


def default_path(folder: Path, options: ExportOptions) -> Path:
    """model.onnx (model.pt2, model-fp16.onnx, ...) in the run of a checkpoint, or beside a checkpoint without a run."""
    folder = folder.resolve()
    run = folder.parents[1] if folder.parent.name == "checkpoints" else folder.parent
    name = "model" if options.precision == "fp32" else f"model-{options.precision}"
    return run / f"{name}.{options.format}"


def _graph(model: DecodedModel, checkpoint: Checkpoint, options: ExportOptions) -> onnx.ModelProto:
    graph = to_onnx(trace(model, getattr(torch, options.input)), model.hierarchy, options.onnx_opset)
    check_opset(graph, options.onnx_opset)
    if options.precision == "int8":
        from seghiero_core.quantize import to_int8

        graph = to_int8(graph, calibration_images(checkpoint))
    logits, *masks = output_names(model.hierarchy)
    keep_outputs(graph, [logits] if options.outputs == "logits" else masks)
    return graph


def _metadata(model: DecodedModel, channels: int, checkpoint: Checkpoint, options: ExportOptions) -> dict[str, Any]:
    """The values of `onnx_file.METADATA_KEYS`."""
    mean, std = (buffer.flatten() / 255 for buffer in (model.model.mean, model.model.std))
    return {
        **class_metadata(model.hierarchy),
        "normalization": {"mean": mean.tolist(), "std": std.tolist()},
        "decoding": {
            "mode": options.mode,
            "scores": model.scores,
            "channels": channels,
            "confidence": model.confidence,
            "undecided": None if model.confidence is None else undecided_id(model.hierarchy),
        },
        "seghiero_version": __version__,
        "config_sha256": hashlib.sha256((checkpoint.folder / "config.yaml").read_bytes()).hexdigest(),
    }
