"""`seghiero eval`: evaluate a checkpoint level by level."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seghiero_cli import console
from seghiero_cli.options import CONFIDENCE_HELP, DECODE_HELP

EXAMPLE = "Example: seghiero eval runs/cfg --decode per_level --json"


def evaluate(
    checkpoint: Annotated[
        Path | None, typer.Argument(metavar="CHECKPOINT", help="A run or checkpoint. Default: the newest run.")
    ] = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "val",
    decode: Annotated[str, typer.Option(help=DECODE_HELP)] = "leaf",
    confidence: Annotated[float | None, typer.Option(help=CONFIDENCE_HELP)] = None,
    background: Annotated[str | None, typer.Option(metavar="NAME", help="Also report mIoU without this class.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images per batch. Default: the run's.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps. Default: the run's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Print IoU per class, mIoU and pixel accuracy of every level, consistency, tree distance and calibration."""
    from seghiero_cli.tables import print_back_off, print_levels, print_summary
    from seghiero_core.checkpoint import find_checkpoint
    from seghiero_core.evaluate import evaluate_checkpoint

    folder = find_checkpoint(checkpoint)
    if checkpoint is None and console.is_main_process():
        console.note(f"no checkpoint given: using the newest run, {folder}")
    metrics = evaluate_checkpoint(
        folder,
        split=split,
        mode=decode,
        confidence=confidence,
        background=background,
        device=device,
        batch_size=batch_size,
    )
    if not console.is_main_process():
        return
    if as_json:
        console.result_json(metrics)
        return
    print_levels(metrics)
    print_summary(metrics)
    if confidence is not None:
        print_back_off(metrics["back_off_curve"], confidence)
