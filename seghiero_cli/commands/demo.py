"""`seghiero demo`: from data to pictures of predictions, on any machine in a minute or two."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seghiero_cli import console

EXAMPLE = "Example: seghiero demo my-demo"


def demo(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to create.")] = Path("seghiero-demo"),
) -> None:
    """Create the starter project, then train, evaluate and predict on it with the commands you would type."""
    from seghiero_cli.commands.eval import evaluate
    from seghiero_cli.commands.init import init
    from seghiero_cli.commands.predict import predict
    from seghiero_cli.commands.train import train
    from seghiero_core.config.loading import load_config

    _print_command(f"seghiero init {folder}")
    init(folder)
    cfg = folder / "cfg.yaml"
    config = load_config(cfg)
    run = folder / config.run_dir.relative_to(folder.resolve())
    pictures = folder / "predictions"
    images = folder / config.dataset.val.images.relative_to(folder.resolve())

    _print_command(f"seghiero train {cfg}")
    train(cfg)
    _print_command(f"seghiero eval {run}")
    evaluate(run)
    _print_command(f"seghiero predict {run} {images} --out {pictures}")
    predict(run, [str(images)], out=pictures)
    console.result(f"\nTruth and prediction side by side: {run / 'validation.png'}\nAll predictions: {pictures}")
    console.result(f"Next: edit {cfg}. Another backbone or head is one line: seghiero list-backbones, list-heads.")


def _print_command(command: str) -> None:
    console.result(f"\n$ {command}")
