"""`seghiero eval`: measure a checkpoint level by level."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seghiero_cli import console

EXAMPLE = "Example: seghiero eval runs/cfg --decode per_level --json"


def evaluate(
    checkpoint: Annotated[
        Path | None, typer.Argument(metavar="[CHECKPOINT]", help="A run or checkpoint; the newest run when left out.")
    ] = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "val",
    decode: Annotated[str, typer.Option(help="How logits become classes: see README, decoding.")] = "leaf",
    confidence: Annotated[
        float | None, typer.Option(help="Back off to the deepest node that is at least this probable (0..1).")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps; the run's when left out.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Print mIoU and pixel accuracy of every level, consistency and tree distance."""
    from seghiero_cli.measures import print_levels, print_summary
    from seghiero_core.checkpoint import find_checkpoint
    from seghiero_core.evaluate import evaluate_checkpoint

    folder = find_checkpoint(checkpoint)
    if checkpoint is None:
        console.note(f"no checkpoint named: using the newest run, {folder}")
    metrics = evaluate_checkpoint(folder, split=split, mode=decode, confidence=confidence, device=device)
    if as_json:
        console.result_json(metrics)
        return
    print_levels(metrics)
    print_summary(metrics)
