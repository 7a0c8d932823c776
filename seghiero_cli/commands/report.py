"""`seghiero report`: a page that shows what a run gets wrong, or several runs side by side."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seghiero_cli import console
from seghiero_cli.options import DEVICE_HELP
from seghiero_cli.progress import Progress, show_evaluation
from seghiero_core.errors import DeviceError, UsageError

if TYPE_CHECKING:
    from seghiero_core.checkpoint import Checkpoint

EXAMPLE = "Example: seghiero report runs/small runs/large --out comparison.html"


def report(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN...",
            help="Runs, checkpoints or configs of runs; several are compared with the first. Default: the newest run.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Default: report.html, for a single run in its folder."),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Compare all runs in a folder of runs, such as runs/.")
    ] = False,
    split: Annotated[str, typer.Option(metavar="NAME", help="train, val or test.")] = "val",
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME", help=f"To measure what isn't measured yet: {DEVICE_HELP} Default: the run's."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the figures of the page as one JSON document.")
    ] = False,
) -> None:
    """Show a run as a page: the class tree, confusions, the worst images, curves; or compare several runs."""
    from seghiero_core.checkpoint import read_checkpoint
    from seghiero_core.report.document import check_same_tree, checkpoint_document, without_pictures
    from seghiero_core.report.files import check_replaceable, write_report
    from seghiero_core.runs import run_of

    folders = _checkpoints(runs or [None], compare=compare)
    own_run = run_of(folders[0]) if len(folders) == 1 else None
    path = out or (own_run or Path()) / _file_name(folders[0], own_run, split)
    check_replaceable(path)
    checkpoints = [read_checkpoint(folder) for folder in folders]
    for other in checkpoints[1:]:  # before anything is measured
        check_same_tree(checkpoints[0], other)
    measured = [_measure(checkpoint, split, device) for checkpoint in checkpoints]
    if not console.is_main_process():
        return
    document = checkpoint_document([*zip(checkpoints, measured, strict=True)])
    counts = {run["evaluation"]["images"] for run in document["runs"] if run["evaluation"]}
    if len(counts) > 1:
        shown = " and ".join(str(count) for count in sorted(counts))
        console.note(f"warning: the runs were measured on {shown} images, so their measures can't be compared.")
    write_report(path, document, own_run)
    if as_json:
        console.result_json(without_pictures(document))
        console.note(f"wrote {console.display_path(path)}")
    else:
        console.result(console.display_path(path))


def _file_name(folder: Path, run: Path | None, split: str) -> str:
    """The page's name, with the split and the step where they aren't those that the run stands for."""
    from seghiero_core.runs import checkpoint_in

    own = run and checkpoint_in(run)
    step = [folder.resolve().name] if own and own.resolve() != folder.resolve() else []
    return "-".join(["report", *([] if split == "val" else [split]), *step]) + ".html"


def _checkpoints(paths: list[Path | None], *, compare: bool) -> list[Path]:
    """Find the checkpoints of the runs to show, with --compare also those in folders of runs."""
    from seghiero_cli.runs import find_named_checkpoint
    from seghiero_core.runs import SeveralRuns, find_checkpoint

    if not compare:
        return [find_named_checkpoint(path) for path in paths]
    folders = []
    for path in paths:
        try:
            folders.append(find_checkpoint(path))
        except SeveralRuns as error:
            folders += [find_checkpoint(run) for run in reversed(error.runs)]  # the oldest first
    if len(folders) < 2:
        raise UsageError("--compare needs at least two runs: name them, or a folder that holds them.")
    return folders


def _measure(checkpoint: Checkpoint, split: str, device: str | None) -> dict[str, Any] | None:
    """Read what a validation or an evaluation has kept; else evaluate. Only the main process needs the result."""
    from seghiero_core.evaluation.checkpoint import evaluate_checkpoint
    from seghiero_core.evaluation.files import keep_in_run, kept_measurement

    if found := kept_measurement(checkpoint.folder, split):
        return found
    with Progress() as progress:
        evaluation = evaluate_checkpoint(
            checkpoint.folder, split=split, device=device, notify=partial(show_evaluation, progress)
        )
    if console.is_main_process():
        try:
            keep_in_run(evaluation)
        except (UsageError, DeviceError, OSError) as error:
            console.note(f"The results are not kept in the run: {error}")
    return evaluation.measurement
