"""`seghiero train`: train and evaluate the model that a YAML file describes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seghiero_cli import console

EXAMPLE = "Example: seghiero train cfg.yaml --set training.epochs=20 --set 'backbone={type: convnext, variant: tiny}'"


def train(
    cfg: Annotated[Path, typer.Argument(metavar="CFG", help="A config's YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the config; repeatable.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the run's last checkpoint.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing run of the same name.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Run two steps, estimate memory and time, write nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the last validation as one JSON document.")] = False,
) -> None:
    """Train the model that a config describes, and keep its best and last checkpoints."""
    from seghiero_core.config.loading import load_config

    config = load_config(cfg, overrides or [])
    if dry_run:
        _dry_run(config, resume=resume, force=force, as_json=as_json)
    else:
        _train(config, resume=resume, force=force, as_json=as_json)


def _dry_run(config, *, resume: bool, force: bool, as_json: bool) -> None:
    """Print the memory and time that the run of `config` would take."""
    from seghiero_cli.training_view import TrainingView, format_duration
    from seghiero_core.training.dry_run import dry_run

    with TrainingView() as view:
        facts = dry_run(config, resume=resume, force=force, notify=view)
    if not console.is_main_process():
        return
    if as_json:
        console.result_json(facts)
        return
    memory = facts["memory_mib"]
    processes = console.plural(facts["processes"], "process", "es")
    steps, epochs = console.plural(facts["steps_per_epoch"], "step"), console.plural(facts["epochs"], "epoch")
    parts = ", ".join(f"{name} {mib:.0f}" for name, mib in memory.items() if mib and name != "peak")
    console.result(f"device: {facts['device']} in {facts['precision']}, {processes}")
    console.result(f"model: {facts['parameters'] / 1e6:.1f} M parameters, batches of {facts['batch_size']} per process")
    console.result(f"memory: {memory['peak']:.0f} MiB at the peak (at any batch size: {parts} MiB)")
    console.result(f"step: {1000 * facts['seconds_per_step']:.0f} ms, including its data")
    console.result(
        f"time: {format_duration(facts['seconds_per_epoch'])} per epoch of {steps}, including validation; "
        f"{format_duration(facts['seconds'])} for {epochs}"
    )
    console.note("Nothing was written.")


def _train(config, *, resume: bool, force: bool, as_json: bool) -> None:
    """Train with the live view, then print the tables of the last validation."""
    from seghiero_cli.tables import print_levels
    from seghiero_cli.training_view import TrainingView
    from seghiero_core.training import loop as training

    with TrainingView() as view:
        record = training.train(config, resume=resume, force=force, notify=view)
    if not console.is_main_process():
        return
    if as_json:
        console.result_json(record.get("metrics"))
    elif record.get("metrics"):
        console.note(f"Last validation, after epoch {record['epoch'] + 1}:")
        print_levels(record["metrics"])
        console.note(f"Next: seghiero eval {console.display_path(config.run_dir)}")
