"""Export a checkpoint to one file, ONNX or torch.export, that is checked against the network before it is kept."""

from __future__ import annotations

import copy
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from google.protobuf.message import DecodeError

from seghiero_core.atomic import replacing
from seghiero_core.checkpoint import Checkpoint, read_checkpoint
from seghiero_core.data.samples import split_samples
from seghiero_core.errors import UsageError
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
from seghiero_core.model.trained import load_trained, with_other_data
from seghiero_core.run_files import record_file
from seghiero_core.runs import run_of


def export_checkpoint(
    folder: Path, out: Path, options: ExportOptions, *, config: Path | None = None, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Export a checkpoint to one file.

    The file is written under a temporary name and renamed to `out` once it has passed `gates.check_parity`.

    Args:
        folder: A checkpoint folder.
        out: The file to write, named .onnx or .pt2 as its format. Only an earlier export is replaced.
        options: What to export.
        config: The YAML file of a config with the same classes, whose data set gives the images instead of the run's.
        overrides: Strings "dataset.key=value" that change where the images are.

    Returns:
        What was written and measured: "path", "checkpoint", "opset" (ONNX only), "precision", "input", "outputs" (their
        names), "mib" (file size in MiB), and the measurements of `check_parity`.

    Raises:
        UsageError: An option is wrong, `out` has another ending or is something else than an export, or the decoding
            mode doesn't fit the network's scores.
        CheckpointError: The checkpoint is damaged.
        DataError: The images needed for int8, or those of `config` or `overrides`, are missing.
        CheckFailed: The file's answers differ too much from the network's.
    """
    options.validate()
    _check_out(out, options.format)
    checkpoint = read_checkpoint(folder)
    bands = checkpoint.config.dataset.channels
    options = options.for_images(bands)
    data = with_other_data(checkpoint, config=config, overrides=overrides)
    if config or overrides:
        split_samples(data.config.dataset, "val")  # data that was named must be there
    _, hierarchy, scores, network = load_trained(checkpoint, "cpu")
    model = DecodedModel(network, hierarchy, scores, options.mode, options.confidence or None).eval()
    with torch.no_grad():  # a decoding mode that doesn't fit the scores fails here, not halfway through tracing
        channels = model(torch.zeros(1, bands or 3, 64, 64))[0].shape[1]
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
            graph = _onnx_graph(traced, data, options, bands or 3)
            set_metadata(graph, metadata)
            outputs = [output.name for output in graph.graph.output]
            partial.write_bytes(graph.SerializeToString())
            runner = onnx_runner(partial)
        measured = check_parity(runner, model, data, options.precision, options.input)
    if run := run_of(folder):
        record_file(run, out)
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


def _check_out(out: Path, file_format: str) -> None:
    """Refuse a folder, a name that tells of another format, and to replace what `seghiero export` didn't write."""
    ending = f".{file_format}"
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder; give a file in it, such as --out {out / f'model{ending}'}.")
    if out.suffix != ending:
        is_format = out.suffix.lower() in (".onnx", ".pt", ".pt2", ".pth")
        right = out.with_suffix(ending) if is_format else out.with_name(out.name + ending)
        raise UsageError(f"--out {out}: the file's name must end in {ending}; use --out {right}.")
    if (out.exists() or out.is_symlink()) and not (out.is_file() and _is_export(out)):
        raise UsageError(
            f"{out} exists and was not written by `seghiero export`; choose another name with --out, or remove it."
        )


def _is_export(path: Path) -> bool:
    if path.suffix == ".onnx":
        try:
            return onnx.load(path, load_external_data=False).producer_name == "seghiero"
        except DecodeError:
            return False
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith("/metadata.json")]
            return any(b"seghiero_version" in archive.read(name) for name in names)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError):  # damaged, or with a password
        return False


def _onnx_graph(model: DecodedModel, checkpoint: Checkpoint, options: ExportOptions, bands: int) -> onnx.ModelProto:
    graph = to_onnx(trace(model, getattr(torch, options.input), bands), model.hierarchy, options.onnx_opset)
    check_opset(graph, options.onnx_opset)
    if options.precision == "int8":
        from seghiero_core.export.int8 import to_int8

        graph = to_int8(graph, calibration_images(checkpoint))
    logits, *masks = output_names(model.hierarchy)
    keep_outputs(graph, [logits] if options.outputs == "logits" else masks)
    return graph
