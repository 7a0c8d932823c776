"""`seghiero export`: write a checkpoint as one self-contained file and check it against the network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from seghiero_cli import console
from seghiero_cli.options import CHECKPOINT_HELP, CONFIDENCE_HELP, CONFIG_HELP, DECODE_HELP, SET_HELP
from seghiero_core.decode_modes import DEFAULT_DECODING

EXAMPLE = "Example: seghiero export runs/cfg --onnx --out street.onnx --json"


_TITLES = {
    "opset": "ONNX operator set",
    "mib": "size, MiB",
    "max_abs_error": "largest difference of logits",
    "max_abs_logit": "largest logit",
    "argmax_agreement": "same class as PyTorch",
    "parity_images": "compared on images",
    "miou_fp32": "leaf mIoU before",
    "miou_int8": "leaf mIoU in 8 bits",
    "miou_images": "images for mIoU",
}
"""Names of the results in the table, where they differ from the keys of the JSON document."""


def export(
    checkpoint: Annotated[Path | None, typer.Argument(metavar="CHECKPOINT", help=CHECKPOINT_HELP)] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write ONNX (the default).")] = False,
    pt2: Annotated[bool, typer.Option("--pt2", help="Write a torch.export program instead of ONNX.")] = False,
    hf: Annotated[
        Path | None, typer.Option("--hf", metavar="DIR", help="Write a SegFormer as a folder for transformers.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default: model.onnx or model.pt2 in the run.")
    ] = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="Compute in half precision.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Compute in 8 bits, calibrated on the data set.")] = False,
    input_type: Annotated[
        str | None,
        typer.Option(
            "--input",
            metavar="TYPE",
            help="uint8 (default) or float32, both in 0..255. With dataset.channels only float32.",
        ),
    ] = None,
    outputs: Annotated[
        str | None, typer.Option(metavar="WHAT", help="masks (default): classes and confidences; or logits.")
    ] = None,
    decode: Annotated[
        str | None, typer.Option(metavar="MODE", help=f"{DECODE_HELP} Default: {DEFAULT_DECODING.mode}.")
    ] = None,
    confidence: Annotated[float | None, typer.Option(metavar="P", help=CONFIDENCE_HELP)] = None,
    opset: Annotated[int | None, typer.Option(metavar="N", help="ONNX operator set, 18 to 23. Default: 20.")] = None,
    config: Annotated[Path | None, typer.Option(metavar="CFG", help=CONFIG_HELP)] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help=SET_HELP)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Write one self-contained file, and check that it gives the same answers as the network."""
    from seghiero_cli.runs import find_named_checkpoint
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
        flags = {"onnx": onnx, "pt2": pt2, "out": out, "fp16": fp16, "int8": int8, "config": config, "set": overrides}
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
    folder = find_named_checkpoint(checkpoint)
    if hf:
        from seghiero_core.export.hf import export_hf

        row = export_hf(folder, hf)
    else:
        path = out or default_path(folder, options)
        row = export_checkpoint(folder, path, options, config=config, overrides=overrides or [])
        if row["parity_images"] == "random":
            console.note(
                "warning: compared on random images, because the run's validation images were not found. "
                "--set dataset.root=FOLDER names their new place."
            )
        if pt2:
            console.note(f"Load it with torch.export.load({str(row['path'])!r}).module(check_guards=False).")
    if as_json:
        console.result_json(row)
        return
    path, rest = row.pop("path"), list(row.items())
    console.table("", ("", ""), [cells for name, value in rest for cells in _cells(name, value)])
    console.result(f"Wrote {path}")  # outside of the table, which would wrap a long path


def _cells(name: str, value: Any) -> list[tuple[str, str]]:
    """Return the rows of the table for a value of the result, with names for people."""
    if isinstance(value, dict):
        return [(f"  {key}", f"{100 * share:.4f} %") for key, share in value.items()]
    if isinstance(value, list):
        text = ", ".join(value)
    elif name.startswith("argmax_agreement"):
        text = f"{100 * value:.4f} %"
    elif name in ("miou_fp32", "miou_int8"):
        text = f"{100 * value:.2f} %"
    else:
        text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return [(_TITLES.get(name, name.replace("_", " ")), text)]
