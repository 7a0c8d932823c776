"""`seghiero demo`: the whole way, from data to pictures of predictions, on any machine in a few minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seghiero_cli import console

EXAMPLE = "Example: seghiero demo my-demo"


def demo(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="The folder to write.")] = Path("seghiero-demo"),
) -> None:
    """Write the starter folder, then train, evaluate and predict on it with the real commands."""
    from seghiero_cli.commands.eval import evaluate
    from seghiero_cli.commands.init import init
    from seghiero_cli.commands.predict import predict
    from seghiero_cli.commands.train import train
    from seghiero_core.config.loading import load_config

    _typed(f"seghiero init {folder}")
    init(folder)
    cfg = folder / "cfg.yaml"
    config = load_config(cfg)
    run = folder / config.run_dir.relative_to(folder.resolve())
    pictures = folder / "predictions"
    images = folder / config.dataset.val.images.relative_to(folder.resolve())

    _typed(f"seghiero train {cfg}")
    train(cfg)
    _typed(f"seghiero eval {run}")
    evaluate(run)
    _typed(f"seghiero predict {run} {images} --out {pictures}")
    predict(run, [str(images)], out=pictures)
    console.result(f"\nTruth beside prediction: {run / 'validation.png'}\nEvery prediction: {pictures}")
    console.result(f"Now edit {cfg}: another backbone or head is one line. See: seghiero list-backbones, list-heads")


def _typed(command: str) -> None:
    console.result(f"\n$ {command}")
