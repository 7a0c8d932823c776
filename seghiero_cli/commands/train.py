"""`seghiero train`: train and evaluate the model that a YAML file describes."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperCommand

from seghiero_cli import console
from seghiero_core.errors import UsageError

EXAMPLE = "Example: seghiero train cfg.yaml --set training.epochs=20"


class TrainCommand(TyperCommand):
    """The command, which knows what an option such as --epochs is meant for."""

    def parse_args(self, ctx, args):
        """Parse the arguments; see click.

        Args:
            ctx: click's context.
            args: The words after the command.

        Returns:
            What click returns.

        Raises:
            UsageError: For an unknown option that is a key of the config.
        """
        words = list(args)
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            option = getattr(error, "option_name", None)  # of click's NoSuchOption, which typer doesn't export
            if option and (hint := _set_instead(option, words)):
                raise UsageError(f"{option}: train has no such option. {hint}") from None
            raise


def _set_instead(option: str, words: list[str]) -> str | None:
    """Say which --set an unknown option stands for, if its name is that of a config key."""
    from seghiero_core.config.suggestions import find_keys

    name, value = option.lstrip("-"), "VALUE"
    for word, following in zip(words, [*words[1:], "--"], strict=True):
        if word.startswith(f"{option}="):
            value = word.partition("=")[2]
        elif word == option:
            is_flag = following.startswith("--") or following.endswith((".yaml", ".yml"))
            value = "true" if is_flag else following
    keys = find_keys(name.rpartition(".")[2].replace("-", "_"))
    return f"Did you mean {' or '.join(f'--set {key}={value}' for key in keys)}?" if keys else None


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
        _train(config, _command(cfg, overrides or []), resume=resume, force=force, as_json=as_json)


def _command(cfg: Path, overrides: list[str]) -> str:
    """The command that starts the run, with everything that the config file doesn't say."""
    words = ["seghiero", *console.global_options, "train", str(cfg)]
    return shlex.join([*words, *(word for override in overrides for word in ("--set", override))])


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
    console.result(
        f"model: {facts['parameters'] / 1e6:.1f} M parameters, batches of {facts['batch_size']} per process, "
        f"{facts['val_batch_size']} in validation"
    )
    console.result(f"memory: {memory['peak']:.0f} MiB at the peak (at any batch size: {parts} MiB)")
    if facts["features_mib"]:
        console.result(f"features: {facts['features_mib']:.0f} MiB on the disk, stored before the first step")
    console.result(f"step: {1000 * facts['seconds_per_step']:.0f} ms, including its data")
    console.result(
        f"time: {format_duration(facts['seconds_per_epoch'])} per epoch of {steps}, including validation; "
        f"{format_duration(facts['seconds'])} for {epochs}"
    )
    console.note("Nothing was written.")


def _train(config, command: str, *, resume: bool, force: bool, as_json: bool) -> None:
    """Train with the live view, then print the tables of the last validation."""
    from seghiero_cli.tables import print_levels, print_sources
    from seghiero_cli.training_view import TrainingView
    from seghiero_core.training import loop as training
    from seghiero_core.training.interrupts import Interrupted

    try:
        with TrainingView() as view:
            record = training.train(config, resume=resume, force=force, command=command, notify=view)
    except Interrupted as stop:  # as asked for, so not an error
        if console.is_main_process():
            launched = int(os.environ.get("WORLD_SIZE", "1")) > 1  # by a command that isn't known here
            resume_command = f"{command} --resume{' --json' if as_json else ''}"
            console.note(str(stop) if launched else f"{stop} The command:\n  {resume_command}")
        raise typer.Exit(stop.exit_code) from None
    if not console.is_main_process():
        return
    if as_json:
        console.result_json(record.get("metrics"))
    elif record.get("metrics"):
        best = "the best so far" if record["best"] else "not the best, which eval and predict use"
        console.note(f"Last validation, after epoch {record['epoch']} ({best}):")
        print_levels(record["metrics"])
        print_sources(record["metrics"], record.get("sources", {}))
        console.note(f"Next: seghiero eval {shlex.quote(str(console.display_path(config.run_dir)))}")
