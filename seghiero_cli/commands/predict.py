"""`seghiero predict`: predict images with a checkpoint or an exported file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seghiero_cli import console
from seghiero_cli.options import CONFIDENCE_IN_MASKS_HELP, DECODE_HELP
from seghiero_cli.progress import Progress

EXAMPLE = "Example: seghiero predict runs/cfg photos/ --out predictions --tta flip --skip-existing"


def predict(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT|MODEL.onnx", help="A run, a checkpoint, or an exported ONNX file.")
    ],
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT...", help="Images, folders or glob patterns.")],
    out: Annotated[Path, typer.Option(help="The folder for the results.")] = Path("predictions"),
    tile: Annotated[
        int | None,
        typer.Option(min=64, help="Side of sliding tiles, px. Default: 1024 for images above 4 MP."),
    ] = None,
    overlap: Annotated[int, typer.Option(min=1, help="Overlap of neighboring tiles, px.")] = 128,
    tta: Annotated[str, typer.Option(help="Test-time augmentation: flip, scales, or flip,scales.")] = "",
    batch_size: Annotated[int, typer.Option(min=1, help="Images of equal size, or tiles, per batch.")] = 1,
    decode: Annotated[
        str | None, typer.Option(help=f"{DECODE_HELP} Default: leaf, or the mode the ONNX file was exported with.")
    ] = None,
    confidence: Annotated[
        float | None,
        typer.Option(help=f"{CONFIDENCE_IN_MASKS_HELP} Default: never, or the value the ONNX file was exported with."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Also save all scores as .npz.")] = False,
    skip_existing: Annotated[bool, typer.Option("--skip-existing", help="Skip images whose results exist.")] = False,
    max_pixels: Annotated[int, typer.Option(min=1, help="Refuse larger images.")] = 2_000_000_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON per image.")] = False,
) -> None:
    """Write one index PNG per level and an overlay for every image; classes.json maps numbers to class names."""
    from seghiero_core.errors import DataError
    from seghiero_core.predict.files import find_jobs, predict_files
    from seghiero_core.predict.loading import load
    from seghiero_core.predict.writer import write_legend

    jobs = find_jobs(inputs, out)
    names = [name for name in tta.split(",") if name]
    predictor = load(
        checkpoint,
        device=device,
        mode=decode,
        confidence=confidence,
        tile=tile,
        overlap=overlap,
        tta=names,
        batch_size=batch_size,
    )
    failed: list[str] = []
    done = skipped = 0
    with Progress() as progress:
        for result in predict_files(
            predictor, jobs, probabilities=probabilities, skip_existing=skip_existing, max_pixels=max_pixels
        ):
            skipped += result.skipped
            if result.error is not None:
                failed.append(result.error)
            elif not result.skipped:
                done += 1
            if as_json:
                _json_line(result)
            rate = done / max(progress.seconds, 1e-9)
            text = f"{done + skipped + len(failed)}/{len(jobs)} images, {rate:.1f} images/s"
            if failed:
                text += f", {len(failed)} failed"
            progress.show(text)
    if done:
        write_legend(out, predictor.hierarchy, predictor.undecided)
    summary = f"{done} of {console.plural(len(jobs), 'image')} predicted"
    if skipped:
        summary += f", {skipped} skipped because their results exist"
    (console.note if as_json else console.result)(f"{summary}: {out}")
    if failed:
        raise DataError(f"{len(failed)} of {console.plural(len(jobs), 'image')} failed:\n  " + "\n  ".join(failed))


def _json_line(result) -> None:
    document = {"image": str(result.image)}
    if result.error is not None:
        document |= {"error": result.error}
    elif result.skipped:
        document |= {"skipped": True}
    else:
        document |= {"ms": round(result.ms, 2), **result.measures}
    console.result_json_line(document)
