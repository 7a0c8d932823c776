"""The `seghiero` program: its commands, its global options, and how errors become messages and exit codes."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from seghiero_cli import console
from seghiero_cli.commands import (
    bench,
    channels,
    data,
    demo,
    doctor,
    export,
    init,
    list_backbones,
    list_heads,
    predict,
    pseudo_label,
    report,
    scaffold,
    train,
    weights,
)
from seghiero_cli.commands import eval as evaluate
from seghiero_core.errors import SeghieroError
from seghiero_core.version import __version__

if TYPE_CHECKING:
    from seghiero_core.plugins.sources import Plugin

app = typer.Typer(
    name="seghiero",
    help="Hierarchical semantic segmentation: train, evaluate and export networks for every level of a class tree.",
    epilog="Example: seghiero init starter && seghiero train starter/cfg.yaml",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train", cls=train.TrainCommand, epilog=train.EXAMPLE)(train.train)
app.command("eval", epilog=evaluate.EXAMPLE)(evaluate.evaluate)
app.command("report", epilog=report.EXAMPLE)(report.report)
app.command("predict", epilog=predict.EXAMPLE)(predict.predict)
app.command("pseudo-label", epilog=pseudo_label.EXAMPLE)(pseudo_label.pseudo_label)
app.command("export", epilog=export.EXAMPLE)(export.export)
app.command("list-backbones", epilog=list_backbones.EXAMPLE)(list_backbones.list_backbones)
app.command("list-heads", epilog=list_heads.EXAMPLE)(list_heads.list_heads)
app.command("channels", epilog=channels.EXAMPLE)(channels.channels)
app.command("scaffold-backbone", epilog=scaffold.BACKBONE_EXAMPLE)(scaffold.scaffold_backbone)
app.command("scaffold-head", epilog=scaffold.HEAD_EXAMPLE)(scaffold.scaffold_head)
app.add_typer(weights.app, name="weights")
app.add_typer(data.app, name="data")
app.command("init", epilog=init.EXAMPLE)(init.init)
app.command("demo", epilog=demo.EXAMPLE)(demo.demo)
app.command("doctor", epilog=doctor.EXAMPLE)(doctor.doctor)
app.command("bench", epilog=bench.EXAMPLE)(bench.bench)


def _print_version(requested: bool) -> None:
    if requested:
        console.result(__version__)
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of errors.")] = False,
    plugin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH|PACKAGE", help="A folder, .py file or package with your own components; repeatable."
        ),
    ] = None,
    no_plugins: Annotated[bool, typer.Option("--no-plugins", help="Load no plugins.")] = False,
) -> None:
    console.debug, console.command = debug, context.invoked_subcommand or ""
    plugin_words = [word for name in plugin or [] for word in ("--plugin", name)]
    console.global_options = [*plugin_words, *(["--no-plugins"] if no_plugins else [])]
    _use_plugins(plugin or [], enabled=not no_plugins)


def _use_plugins(named: Sequence[str], *, enabled: bool) -> None:
    """Have plugins loaded once a command needs them. Raises UsageError if one of `named` doesn't exist."""
    # Imported here, because --help doesn't get here and shouldn't wait for it.
    from seghiero_core.plugins.loading import configure_plugins, load_plugins_on_demand
    from seghiero_core.plugins.sources import resolve_plugin

    configure_plugins(enabled=enabled, notify=_announce)
    for name in named:
        resolve_plugin(name)
    load_plugins_on_demand(named)


def _announce(plugin: Plugin) -> None:
    from seghiero_core.plugins.sources import FOLDER

    if plugin.path == Path.cwd() / FOLDER:
        console.note(f"loaded ./{FOLDER}: {', '.join(plugin.registered) or 'registers nothing'}")
    elif not plugin.registered and not plugin.failures:
        console.note(f"warning: plugin {plugin.path or plugin.name} registers no backbone or head.")
    for module, reason in plugin.failures.items():
        console.note(f"warning: could not load plugin {module} ({reason}).")


def main() -> None:
    """Run the command line; never returns."""
    try:
        app()
    except SeghieroError as error:
        _fail(str(error), error.exit_code, error)
    except BrokenPipeError:  # the reader of our output, such as `head`, has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _fail(_os_error_message(error), 4, error)
    except (RuntimeError, MemoryError) as error:
        if "torch" not in sys.modules:
            raise
        from seghiero_core.devices import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        _fail(_memory_message(error), 4, error)


def _os_error_message(error: OSError) -> str:
    prefix = f"{error.filename}: " if error.filename else ""
    advice = {
        errno.ENOSPC: "the disk is full; free some space, or choose another folder (output.dir, --out).",
        errno.EACCES: "permission denied; choose a folder you can write to (output.dir, --out).",
        errno.EPERM: "operation not permitted; choose a folder you can write to (output.dir, --out).",
        errno.EROFS: "the file system is read-only; choose another folder (output.dir, --out).",
    }
    return prefix + advice.get(error.errno, error.strerror or str(error))


def _memory_message(error: BaseException) -> str:
    advice = {
        "eval": "a smaller --batch-size",
        "predict": "a smaller --batch-size or --tile",
        "train": "a smaller training.batch_size, transform.size or backbone",
    }
    fix = advice.get(console.command, "a smaller network, or a machine with more memory")
    if type(error).__name__ != "OutOfMemoryError":
        return f"this machine ran out of memory; use {fix}."
    if console.command in ("eval", "predict"):
        fix += ", or --device cpu"
    return f"the GPU ran out of memory; use {fix}."


def _fail(message: str, code: int, error: BaseException) -> None:
    if console.debug:
        raise error
    console.error(message)
    sys.exit(code)
