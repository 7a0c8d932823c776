"""`seghiero predict`: predict images with a checkpoint or an exported file."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from seghiero_cli import console
from seghiero_cli.options import CONFIDENCE_HELP, DECODE_HELP, DEVICE_HELP
from seghiero_cli.progress import Progress
from seghiero_core.decode_modes import DEFAULT_DECODING
from seghiero_core.errors import shorten

EXAMPLE = "Example: seghiero predict runs/cfg photos/ --tta flip --skip-existing"


def predict(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A run, a checkpoint or an exported .onnx file.")
    ],
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT...", help="Images, folders or glob patterns.")],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="The folder for the results. Default: predictions.", show_default=False)
    ] = Path("predictions"),
    tile: Annotated[
        int | None,
        typer.Option(min=64, metavar="N", help="Side of sliding tiles, px. Default: 1024 above 4 MP."),
    ] = None,
    overlap: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Overlap of neighboring tiles, px. Default: 128.", show_default=False),
    ] = 128,
    tta: Annotated[str, typer.Option(metavar="HOW", help="Test-time augmentation: flip, scales, or flip,scales.")] = "",
    batch_size: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Images of equal size, or tiles, per batch. Default: 1.", show_default=False
        ),
    ] = 1,
    decode: Annotated[
        str | None,
        typer.Option(metavar="MODE", help=f"{DECODE_HELP} Default: the ONNX file's, or {DEFAULT_DECODING.mode}."),
    ] = None,
    confidence: Annotated[
        float | None, typer.Option(metavar="P", help=f"{CONFIDENCE_HELP} Default: the ONNX file's, or never.")
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="NAME", help=f"{DEVICE_HELP} Default: auto.", show_default=False)
    ] = "auto",
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Also save all scores as .npz.")] = False,
    skip_existing: Annotated[bool, typer.Option("--skip-existing", help="Skip images whose results exist.")] = False,
    max_pixels: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Refuse larger images. Default: 2 000 000 000; for rasters no limit."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON per image.")] = False,
) -> None:
    """Write one index PNG per level and an overlay for every image; classes.json maps numbers to class names.

    GeoTIFF files, and TIFF files above 67 MP, give GeoTIFF masks (with the extra
    `rasters`). If one is interrupted, the same command goes on with it.
    """
    from seghiero_cli.runs import find_named_checkpoint
    from seghiero_core.atomic import check_writable, make_folder
    from seghiero_core.errors import DataError
    from seghiero_core.predict.files import predict_files
    from seghiero_core.predict.jobs import find_jobs
    from seghiero_core.predict.legend import check_legend, write_legend
    from seghiero_core.predict.loading import load
    from seghiero_core.predict.writer import PredictionOutputs

    check_legend(out)
    names = [name for name in tta.split(",") if name]
    predictor = load(
        checkpoint if checkpoint.suffix == ".onnx" else find_named_checkpoint(checkpoint),
        device=device,
        mode=decode,
        confidence=confidence,
        tile=tile,
        overlap=overlap,
        tta=names,
        batch_size=batch_size,
    )
    jobs = find_jobs(inputs, out, print_skipped, arrays=predictor.bands is not None)
    make_folder(out)
    check_writable(out)
    failed: list[str] = []
    done = skipped = 0
    with Progress() as progress:
        outputs = PredictionOutputs(predictor.hierarchy, predictor.undecided, probabilities)
        options = {"skip_existing": skip_existing, "max_pixels": max_pixels}
        for result in predict_files(predictor, jobs, outputs, notify=partial(show_raster, progress), **options):
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


def print_skipped(event: dict[str, Any]) -> None:
    """Say which files of a folder were not images; for `find_jobs`."""
    files = event["files"]
    kinds = shorten([f"{count} {suffix or 'without an extension'}" for suffix, count in files.items()], 5)
    console.note(f"{event['folder']}: skipped {console.plural(sum(files.values()), 'file')} of other types ({kinds})")


def show_raster(progress: Progress, event: dict[str, Any]) -> None:
    """Show how far a raster is, and whether it was begun before; for `predict_files`."""
    if event["event"] == "rows":
        progress.show(f"{event['image']}: {event['done']} of {event['height']} rows")
    elif event["event"] == "resumed":
        console.note(f"{event['image']}: going on with what is finished")
    else:
        changed = ", ".join(event["changed"])
        console.note(f"{event['image']}: begun again; what was finished can't be used (differs: {changed})")


def _json_line(result) -> None:
    document = {"image": str(result.image)}
    if result.error is not None:
        document |= {"error": result.error}
    elif result.skipped:
        document |= {"skipped": True}
    else:
        document |= {"ms": round(result.ms, 2), **result.measures}
    console.result_json_line(document)
