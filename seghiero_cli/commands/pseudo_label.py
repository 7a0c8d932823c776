"""`seghiero pseudo-label`: predictions as masks to train on."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from seghiero_cli import console
from seghiero_cli.commands.predict import print_skipped, show_raster
from seghiero_cli.options import DECODE_HELP, DEVICE_HELP
from seghiero_cli.progress import Progress
from seghiero_cli.tables import format_percent
from seghiero_core.decode_modes import DEFAULT_BACK_OFF_MODE

EXAMPLE = "Example: seghiero pseudo-label runs/cfg photos/ --out masks --confidence 0.9"


def pseudo_label(
    checkpoint: Annotated[Path, typer.Argument(metavar="RUN", help="A run, a checkpoint or an exported .onnx file.")],
    inputs: Annotated[list[str], typer.Argument(metavar="IMAGES...", help="Images, folders or glob patterns.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder for the masks. Existing masks are kept.")],
    confidence: Annotated[
        float, typer.Option(metavar="P", help="Label a pixel with the deepest class of at least this probability.")
    ],
    decode: Annotated[str, typer.Option(metavar="MODE", help=DECODE_HELP)] = DEFAULT_BACK_OFF_MODE,
    tile: Annotated[
        int | None, typer.Option(min=64, metavar="N", help="Side of sliding tiles, px. Default: 1024 above 4 MP.")
    ] = None,
    tta: Annotated[str, typer.Option(metavar="HOW", help="Test-time augmentation: flip, scales, or flip,scales.")] = "",
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Images of equal size, or tiles, per batch.")] = 1,
    device: Annotated[str, typer.Option(metavar="NAME", help=DEVICE_HELP)] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Write masks of predictions to train on: the deepest class that is sure enough, or ignored.

    A pixel that is surely a vehicle, but may be a car or a bus, is labeled
    vehicle. classes.yaml in the folder lists the mask values. If the command is
    stopped, the same command goes on with it.
    """
    from seghiero_cli.runs import find_named_checkpoint
    from seghiero_core.atomic import check_writable, make_folder
    from seghiero_core.errors import DataError
    from seghiero_core.predict.files import predict_files
    from seghiero_core.predict.jobs import find_jobs
    from seghiero_core.predict.loading import load
    from seghiero_core.predict.pseudo_labels import PseudoLabels, write_classes

    if checkpoint.suffix != ".onnx":
        checkpoint = find_named_checkpoint(checkpoint)
    options = {"mode": decode, "confidence": confidence, "tile": tile, "tta": [name for name in tta.split(",") if name]}
    predictor = load(checkpoint, device=device, batch_size=batch_size, **options)
    jobs = find_jobs(inputs, out, print_skipped, arrays=predictor.bands is not None)
    make_folder(out)
    check_writable(out)
    classes = write_classes(out, predictor.hierarchy, {"checkpoint": str(checkpoint.resolve()), **options})
    failed: list[str] = []
    pixels = skipped = done = 0
    labeled = dict.fromkeys([level.name for level in predictor.hierarchy.levels], 0)
    with Progress() as progress:
        outputs, notify = PseudoLabels(predictor.hierarchy), partial(show_raster, progress)
        for result in predict_files(predictor, jobs, outputs, skip_existing=True, notify=notify):
            if result.error is not None:
                failed.append(result.error)
            elif result.skipped:
                skipped += 1
            else:
                done += 1
                pixels += result.measures["pixels"]
                for name, count in result.measures["labeled"].items():
                    labeled[name] += count
            progress.show(f"{done + skipped + len(failed)}/{len(jobs)} images")
    coverage = {name: count / pixels for name, count in labeled.items()} if pixels else {}
    if as_json:
        document = {"images": done, "skipped": skipped, "failed": failed, "labeled": coverage, "classes": str(classes)}
        console.result_json(document)
    else:
        if coverage:
            rows = [[name, format_percent(share)] for name, share in coverage.items()]
            console.table("", ["level", "labeled pixels %"], rows, right=[1])
        kept = f", {skipped} kept from before" if skipped else ""
        console.result(f"{console.plural(done, 'mask')} written{kept}: {out}. Their labels: {classes}")
    if failed:
        raise DataError(f"{len(failed)} of {console.plural(len(jobs), 'image')} failed:\n  " + "\n  ".join(failed))
