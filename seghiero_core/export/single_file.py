"""Export a checkpoint to one file, ONNX or torch.export, that is checked against the network before it is kept."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import onnx
import torch

from seghiero_core.atomic import replacing
from seghiero_core.checkpoint import Checkpoint, read_checkpoint
from seghiero_core.export.gates import check_parity
from seghiero_core.export.graph import (
    DecodedModel,
    HalfPrecision,
    check_opset,
    keep_outputs,
    output_names,
    to_onnx,
    trace,
)
from seghiero_core.export.images import calibration_images
from seghiero_core.export.metadata import export_metadata, set_metadata
from seghiero_core.export.options import ExportOptions
from seghiero_core.export.pt2 import to_pt2
from seghiero_core.export.runner import onnx_runner, pt2_runner
from seghiero_core.model.trained import load_trained


def export_checkpoint(folder: Path, out: Path, options: ExportOptions) -> dict[str, Any]:
    """Export a checkpoint to one file.

    The file is written under a temporary name and renamed to `out` once it has passed `gates.check_parity`.

    Args:
        folder: A checkpoint folder.
        out: The file to write. An existing file is replaced.
        options: What to export.

    Returns:
        What was written and measured: "path", "checkpoint", "opset" (ONNX only), "precision", "input", "outputs" (their
        names), "mib" (file size in MiB), and the measurements of `check_parity`.

    Raises:
        UsageError: An option is wrong, or the decoding mode doesn't fit the network's scores.
        CheckpointError: The checkpoint is damaged.
        DataError: The images needed for int8 are missing.
        CheckFailed: The file's answers differ too much from the network's.
    """
    options.validate()
    checkpoint, hierarchy, scores, network = load_trained(read_checkpoint(folder), "cpu")
    model = DecodedModel(network, hierarchy, scores, options.mode, options.confidence or None).eval()
    with torch.no_grad():  # a decoding mode that doesn't fit the scores fails here, not halfway through tracing
        channels = model(torch.zeros(1, 3, 64, 64))[0].shape[1]
    with replacing(out) as partial:
        partial.touch()  # an unwritable folder fails here, before minutes of work
        traced = copy.deepcopy(model)
        if options.precision == "fp16":
            traced.model.backbone = HalfPrecision(traced.model.backbone)
        metadata = export_metadata(model, channels, checkpoint, options)
        if options.format == "pt2":
            content, outputs = to_pt2(traced, getattr(torch, options.input), options.outputs, metadata)
            partial.write_bytes(content)
            runner = pt2_runner(partial)
        else:
            graph = _onnx_graph(traced, checkpoint, options)
            set_metadata(graph, metadata)
            outputs = [output.name for output in graph.graph.output]
            partial.write_bytes(graph.SerializeToString())
            runner = onnx_runner(partial)
        measured = check_parity(runner, model, checkpoint, options.precision, options.input)
    row: dict[str, Any] = {"path": str(out), "checkpoint": str(folder)}
    if options.format == "onnx":
        row["opset"] = options.onnx_opset
    return {
        **row,
        "precision": options.precision,
        "input": options.input,
        "outputs": outputs,
        "mib": round(out.stat().st_size / 2**20, 2),
        **measured,
    }


def default_path(folder: Path, options: ExportOptions) -> Path:
    """Return where an export goes by default: model.onnx, model-fp16.onnx, model.pt2, ...

    Args:
        folder: A checkpoint folder.
        options: What to export.

    Returns:
        A path in the checkpoint's run folder, or beside the checkpoint if it isn't part of a run.
    """
    folder = folder.resolve()
    run = folder.parents[1] if folder.parent.name == "checkpoints" else folder.parent
    name = "model" if options.precision == "fp32" else f"model-{options.precision}"
    return run / f"{name}.{options.format}"


def _onnx_graph(model: DecodedModel, checkpoint: Checkpoint, options: ExportOptions) -> onnx.ModelProto:
    graph = to_onnx(trace(model, getattr(torch, options.input)), model.hierarchy, options.onnx_opset)
    check_opset(graph, options.onnx_opset)
    if options.precision == "int8":
        from seghiero_core.export.int8 import to_int8

        graph = to_int8(graph, calibration_images(checkpoint))
    logits, *masks = output_names(model.hierarchy)
    keep_outputs(graph, [logits] if options.outputs == "logits" else masks)
    return graph
