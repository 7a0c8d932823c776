"""Export: a checkpoint as one file, ONNX or torch.export, checked against the network before it gets its name."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import onnx
import torch

from seghiero_core.atomic import replacing
from seghiero_core.checkpoint import Checkpoint, read_checkpoint
from seghiero_core.export.graph import (
    DecodedModel,
    HalfPrecision,
    check_opset,
    keep_outputs,
    output_names,
    to_onnx,
    trace,
)
from seghiero_core.export.metadata import export_metadata, set_metadata
from seghiero_core.export.options import ExportOptions
from seghiero_core.export.parity import calibration_images, check
from seghiero_core.export.pt2 import to_pt2
from seghiero_core.export.runner import onnx_run, pt2_run
from seghiero_core.model.trained import load_trained


def export_checkpoint(folder: Path, out: Path, options: ExportOptions) -> dict[str, Any]:
    """Write the checkpoint in `folder` to `out` and return what was measured.

    The file gets its name only when it has passed `export_check.check`.
    Raises UsageError for an unknown option, CheckpointError, DataError where int8 finds no data, CheckFailed.
    """
    options.check()
    checkpoint, hierarchy, scores, network = load_trained(read_checkpoint(folder), "cpu")
    model = DecodedModel(network, hierarchy, scores, options.mode, options.confidence or None).eval()
    with torch.no_grad():  # also raises here, not in the midst of tracing, where the decoding doesn't fit the scores
        channels = model(torch.zeros(1, 3, 64, 64))[0].shape[1]
    with replacing(out) as partial:
        partial.touch()  # a folder that can't be written to is known before minutes of work
        traced = copy.deepcopy(model)
        if options.precision == "fp16":
            traced.model.backbone = HalfPrecision(traced.model.backbone)
        metadata = export_metadata(model, channels, checkpoint, options)
        if options.format == "pt2":
            content, outputs = to_pt2(traced, getattr(torch, options.input), options.outputs, metadata)
        else:
            graph = _graph(traced, checkpoint, options)
            set_metadata(graph, metadata)
            content, outputs = graph.SerializeToString(), [output.name for output in graph.graph.output]
        partial.write_bytes(content)
        run = pt2_run(partial) if options.format == "pt2" else onnx_run(partial)
        row = check(run, model, checkpoint, options.precision, options.input)
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
        from seghiero_core.export.int8 import to_int8

        graph = to_int8(graph, calibration_images(checkpoint))
    logits, *masks = output_names(model.hierarchy)
    keep_outputs(graph, [logits] if options.outputs == "logits" else masks)
    return graph
