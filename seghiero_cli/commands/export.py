"""`seghiero export`: a checkpoint as one file, checked against the network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from seghiero_cli import console
from seghiero_cli.options import DECODE_HELP, UNDECIDED_HELP

PT2_HELP = "Write a torch.export program instead: torch.export.load(FILE).module(check_guards=False)(images)."
EXAMPLE = "Example: seghiero export runs/cfg --onnx --out street.onnx --json"


def export(
    checkpoint: Annotated[
        Path | None, typer.Argument(metavar="[CHECKPOINT]", help="A run or checkpoint; the newest run when left out.")
    ] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write ONNX (the default).")] = False,
    pt2: Annotated[bool, typer.Option("--pt2", help=PT2_HELP)] = False,
    hf: Annotated[
        Path | None, typer.Option("--hf", metavar="DIR", help="Write a SegFormer as a folder for transformers.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The file; model.onnx or model.pt2 in the run when left out.")
    ] = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="Half precision inside.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="8-bit, calibrated on the data set; ONNX only.")] = False,
    input_type: Annotated[
        str | None, typer.Option("--input", help="uint8 (when left out), or float32 with the same 0..255.")
    ] = None,
    outputs: Annotated[
        str | None,
        typer.Option(help="masks (when left out): classes and confidence per level; or logits."),
    ] = None,
    decode: Annotated[str | None, typer.Option(help=f"{DECODE_HELP} Left out: leaf.")] = None,
    confidence: Annotated[float | None, typer.Option(help=UNDECIDED_HELP)] = None,
    opset: Annotated[int | None, typer.Option(help="ONNX operator set, 18 to 23; 20 when left out.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Write one file that needs nothing else, and check that it gives the network's answers."""
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
            raise UsageError(f"--hf writes a folder of float32 weights that gives logits; leave out {refused}.")
    precision = "fp16" if fp16 else "int8" if int8 else "fp32"
    options = ExportOptions(format="pt2" if pt2 else "onnx", precision=precision, **given)
    folder = find_checkpoint(checkpoint)
    if checkpoint is None:
        console.note(f"no checkpoint named: using the newest run, {folder}")
    if hf:
        from seghiero_core.export.hf import export_hf

        row = export_hf(folder, hf)
    else:
        row = export_checkpoint(folder, out or default_path(folder, options), options)
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
