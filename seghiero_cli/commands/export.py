"""`seghiero export`: write a checkpoint as one self-contained file and check it against the network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from seghiero_cli import console
from seghiero_cli.options import CONFIDENCE_IN_MASKS_HELP, DECODE_HELP

EXAMPLE = "Example: seghiero export runs/cfg --onnx --out street.onnx --json"


def export(
    checkpoint: Annotated[
        Path | None, typer.Argument(metavar="CHECKPOINT", help="A run or checkpoint. Default: the newest run.")
    ] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write ONNX (the default).")] = False,
    pt2: Annotated[bool, typer.Option("--pt2", help="Write a torch.export program instead of ONNX.")] = False,
    hf: Annotated[
        Path | None, typer.Option("--hf", metavar="DIR", help="Write a SegFormer as a folder for transformers instead.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The file. Default: model.onnx or model.pt2 in the run."),
    ] = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="Compute in half precision.")] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="Compute in 8 bits, calibrated on the data set; ONNX only.")
    ] = False,
    input_type: Annotated[
        str | None,
        typer.Option("--input", help="uint8, or float32 with the same range 0..255. Default: uint8."),
    ] = None,
    outputs: Annotated[
        str | None,
        typer.Option(help="masks: classes and confidence per level; or logits. Default: masks."),
    ] = None,
    decode: Annotated[str | None, typer.Option(help=f"{DECODE_HELP} Default: leaf.")] = None,
    confidence: Annotated[float | None, typer.Option(help=f"{CONFIDENCE_IN_MASKS_HELP} Default: never.")] = None,
    opset: Annotated[int | None, typer.Option(help="ONNX operator set, 18 to 23. Default: 20.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Write one self-contained file, and check that it gives the same answers as the network."""
    from seghiero_core.checkpoint import find_checkpoint
    from seghiero_core.errors import UsageError
    from seghiero_core.export.options import ExportOptions
    from seghiero_core.export.single_file import default_path, export_checkpoint

    if fp16 and int8:
        raise UsageError("give either --fp16 or --int8, not both.")
    if onnx and pt2:
        raise UsageError("give either --onnx or --pt2, not both.")
    values = {"input": input_type, "outputs": outputs, "mode": decode, "confidence": confidence, "opset": opset}
    given = {name: value for name, value in values.items() if value is not None}
    if hf:
        flags = {"onnx": onnx, "pt2": pt2, "out": out, "fp16": fp16, "int8": int8}
        names = [name for name, value in flags.items() if value] + list(given)
        if names:
            refused = ", ".join("--decode" if name == "mode" else f"--{name}" for name in names)
            raise UsageError(f"--hf always writes float32 weights that give logits; remove {refused}.")
    precision = "fp32"
    if fp16:
        precision = "fp16"
    elif int8:
        precision = "int8"
    options = ExportOptions(format="pt2" if pt2 else "onnx", precision=precision, **given)
    folder = find_checkpoint(checkpoint)
    if checkpoint is None:
        console.note(f"no checkpoint given: using the newest run, {folder}")
    if hf:
        from seghiero_core.export.hf import export_hf

        row = export_hf(folder, hf)
    else:
        row = export_checkpoint(folder, out or default_path(folder, options), options)
        if pt2:
            console.note(f"Load it with torch.export.load({str(row['path'])!r}).module(check_guards=False).")
    if as_json:
        console.result_json(row)
        return
    console.table("", ("", ""), [(name, text) for name, value in row.items() for name, text in _cells(name, value)])


def _cells(name: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [(f"  {key}", f"{100 * share:.4f} %") for key, share in value.items()]
    if isinstance(value, list):
        return [(name, ", ".join(value))]
    if name.startswith(("argmax_agreement", "miou_")) and isinstance(value, float):
        return [(name, f"{100 * value:.4f} %" if name.startswith("argmax") else f"{100 * value:.2f}")]
    return [(name, f"{value:.3g}" if isinstance(value, float) else str(value))]
