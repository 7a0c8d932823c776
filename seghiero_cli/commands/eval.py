"""`seghiero eval`: evaluate a checkpoint level by level."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seghiero_cli import console
from seghiero_cli.options import CHECKPOINT_HELP, CONFIDENCE_HELP, CONFIG_HELP, DECODE_HELP, DEVICE_HELP, SET_HELP
from seghiero_cli.progress import Progress, show_evaluation
from seghiero_core.decode_modes import DEFAULT_DECODING
from seghiero_core.errors import DeviceError, UsageError

if TYPE_CHECKING:
    from seghiero_core.evaluation.checkpoint import CheckpointEvaluation

EXAMPLE = "Example: seghiero eval runs/cfg --decode per_level --json"


def evaluate(
    checkpoint: Annotated[Path | None, typer.Argument(metavar="CHECKPOINT", help=CHECKPOINT_HELP)] = None,
    split: Annotated[str | None, typer.Option(metavar="NAME", help="train, val or test. Default: val.")] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Measure on these images instead; needs --masks, which hold the values of classes.labels.",
        ),
    ] = None,
    masks: Annotated[Path | None, typer.Option(metavar="DIR", help="The masks of --images.")] = None,
    config: Annotated[Path | None, typer.Option(metavar="CFG", help=CONFIG_HELP)] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help=SET_HELP)] = None,
    decode: Annotated[
        str, typer.Option(metavar="MODE", help=f"{DECODE_HELP} Default: {DEFAULT_DECODING.mode}.", show_default=False)
    ] = DEFAULT_DECODING.mode,
    confidence: Annotated[float | None, typer.Option(metavar="P", help=CONFIDENCE_HELP)] = None,
    background: Annotated[
        str | None, typer.Option(metavar="CLASS", help="Also report mIoU without this class.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Images per batch. Default: the run's.")
    ] = None,
    device: Annotated[str | None, typer.Option(metavar="NAME", help=f"{DEVICE_HELP} Default: the run's.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to keep the results. Default: eval in the run.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Measure a trained network: IoU per class and level, consistency, tree distance, calibration."""
    from seghiero_cli.runs import find_named_checkpoint
    from seghiero_cli.tables import print_back_off, print_levels, print_sources, print_summary
    from seghiero_core.atomic import check_writable, make_folder
    from seghiero_core.evaluation.checkpoint import evaluate_checkpoint

    folders = _folders(images, masks, split)
    if out is not None:
        make_folder(out)
        check_writable(out)
    folder = find_named_checkpoint(checkpoint)
    with Progress() as progress:
        evaluation = evaluate_checkpoint(
            folder,
            split=split or "val",
            mode=decode,
            confidence=confidence,
            background=background,
            device=device,
            batch_size=batch_size,
            config=config,
            overrides=overrides or [],
            folders=folders,
            notify=partial(show_evaluation, progress),
        )
    if not console.is_main_process():
        return
    metrics = evaluation.document
    if metrics.get("in_tiles"):
        console.note("warning: some image didn't fit in memory and was measured in tiles; results may differ slightly.")
    parts = metrics.get("sources", {"": metrics}).values()
    shown = [f"{console.plural(part['images'], 'image')} of {_place(part['data'])}" for part in parts]
    console.note(f"measured on {', '.join(shown)}")
    if as_json:
        console.result_json(metrics)
    else:
        print_levels(metrics)
        print_sources(metrics, metrics.get("sources", {}))
        print_summary(metrics)
        if confidence is not None:
            print_back_off(metrics["back_off_curve"], confidence)
    _keep(evaluation, out)


def _place(data: Mapping[str, Any]) -> str:
    """The folder of the images; of other types of data sets, the keys of the split."""
    if "images" in data:
        return console.display_path(Path(data["images"]))
    return ", ".join(f"{key} {value}" for key, value in data.items())


def _folders(images: Path | None, masks: Path | None, split: str | None) -> Any:
    """Return --images and --masks as a split; None if neither is given."""
    from seghiero_core.config.schema import SplitConfig

    if images is None and masks is None:
        return None
    if images is None or masks is None:
        missing, given = ("--masks", "--images") if masks is None else ("--images", "--masks")
        raise UsageError(f"{given} needs {missing}: give the folders of both.")
    if split is not None:
        raise UsageError(f"--split {split} selects data of the run; remove it, or --images and --masks.")
    return SplitConfig(images=images.absolute(), masks=masks.absolute())


def _keep(evaluation: CheckpointEvaluation, out: Path | None) -> None:
    """Write the results to files and say where. Results that can't be kept in the run are printed all the same."""
    from seghiero_core.evaluation.files import keep_in_run, save_evaluation
    from seghiero_core.report.document import checkpoint_document
    from seghiero_core.report.files import write_report
    from seghiero_core.runs import run_of

    if out is not None:
        files = save_evaluation(evaluation, out)
    elif not evaluation.own_data:
        console.note("Not kept in the run: this is other data than the run's. --out DIR keeps the results.")
        return
    else:
        try:
            files = keep_in_run(evaluation)
        except (UsageError, DeviceError, OSError) as error:  # a file is in the way, or the folder can't be written to
            console.note(f"Not kept in the run: {error}\n--out DIR keeps the results elsewhere.")
            return
        if not files:
            console.note("Not kept: this checkpoint isn't in a run folder. --out DIR keeps the results.")
            return
    kept = console.display_path(files[0]).removesuffix(".json")
    console.note(f"Kept: {kept}.json\n      {kept}-LEVEL.csv, the confusion matrix of each level")
    try:
        document = checkpoint_document([(evaluation.checkpoint, evaluation.measurement)])
        write_report(files[0].with_suffix(".html"), document, run_of(evaluation.checkpoint.folder))
    except UsageError as error:  # another file has its name
        console.note(str(error))
        return
    console.note(f"      {kept}.html, the same as a page with pictures")
