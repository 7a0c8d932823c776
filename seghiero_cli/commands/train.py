"""`seghiero train`: from one YAML file to a trained, measured model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seghiero_cli import console

EXAMPLE = "Example: seghiero train cfg.yaml --set training.epochs=20 --set 'backbone={type: convnext, variant: tiny}'"


def train(
    cfg: Annotated[Path, typer.Argument(metavar="CFG", help="The YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key; repeatable.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a run of the same name.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Run a few steps, estimate memory and time, and write nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the last validation as one JSON document.")] = False,
) -> None:
    """Train the network that a config describes, and keep its best and last checkpoints."""
    from seghiero_core.config.loading import load_config

    config = load_config(cfg, overrides or [])
    if dry_run:
        show_dry_run(config, resume=resume, force=force, as_json=as_json)
    else:
        run_training(config, resume=resume, force=force, as_json=as_json)


def show_dry_run(config, *, resume: bool, force: bool, as_json: bool) -> None:
    """Print what the run of `config` would take."""
    from seghiero_cli.training_view import TrainingView, duration
    from seghiero_core.training.dry_run import dry_run

    with TrainingView() as view:
        facts = dry_run(config, resume=resume, force=force, notify=view)
    if not console.is_main_process():
        return
    if as_json:
        console.result_json(facts)
        return
    memory = facts["memory_mib"]
    parts = ", ".join(f"{name} {mib:.0f}" for name, mib in memory.items() if mib and name != "peak")
    console.result(f"device: {facts['device']} in {facts['precision']}, {facts['processes']} process(es)")
    console.result(f"model: {facts['parameters'] / 1e6:.1f} M parameters, batches of {facts['batch_size']} per process")
    console.result(f"memory: {memory['peak']:.0f} MiB at the peak ({parts} MiB whatever the batch)")
    console.result(f"step: {1000 * facts['seconds_per_step']:.0f} ms, its data included")
    console.result(
        f"time: {duration(facts['seconds_per_epoch'])} per epoch of {facts['steps_per_epoch']} steps, validation "
        f"included; {duration(facts['seconds'])} for {facts['epochs']} epochs"
    )
    console.note("Nothing was written.")


def run_training(config, *, resume: bool = False, force: bool = False, as_json: bool = False) -> None:
    """Train with the live view, then print the tables of the last validation. `demo` uses it too."""
    from seghiero_cli.tables import print_levels
    from seghiero_cli.training_view import TrainingView
    from seghiero_core.training import loop as training

    with TrainingView() as view:
        record = training.train(config, resume=resume, force=force, notify=view)
    if not console.is_main_process():
        return  # one process of several speaks
    if as_json:
        console.result_json(record.get("metrics"))
    elif record.get("metrics"):
        console.note(f"The last validation, after epoch {record['epoch'] + 1}:")
        print_levels(record["metrics"])
        console.note(f"Next: seghiero eval {console.shown(config.run_dir)}")
