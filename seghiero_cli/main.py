"""The list of commands, and the one place that turns an error into a message and an exit code."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from seghiero_cli import console
from seghiero_cli.commands import (
    channels,
    data,
    demo,
    doctor,
    export,
    init,
    list_backbones,
    list_heads,
    predict,
    scaffold,
    train,
    weights,
)
from seghiero_cli.commands import eval as evaluate
from seghiero_core.errors import SeghieroError
from seghiero_core.plugins.loading import FOLDER, Plugin, configure_plugins, load_found_plugins, resolve_plugin
from seghiero_core.registry import before_lookup
from seghiero_core.version import __version__

app = typer.Typer(
    name="seghiero",
    help="Hierarchical semantic segmentation: train, measure and ship networks that predict every level of a tree.",
    epilog="Example: seghiero init starter && seghiero train starter/cfg.yaml",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train", epilog=train.EXAMPLE)(train.train)
app.command("eval", epilog=evaluate.EXAMPLE)(evaluate.evaluate)
app.command("predict", epilog=predict.EXAMPLE)(predict.predict)
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


def _print_version(asked: bool) -> None:
    if asked:
        console.result(__version__)
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    plugin: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH|PACKAGE", help="A folder, .py file or package of your own components; repeatable."),
    ] = None,
    no_plugins: Annotated[bool, typer.Option("--no-plugins", help="Load no plugins at all.")] = False,
) -> None:
    console.debug, console.command = debug, context.invoked_subcommand or ""
    _use_plugins(plugin or [], enabled=not no_plugins)


def _use_plugins(named: Sequence[str], *, enabled: bool) -> None:
    """Have the plugins loaded once a command needs them. Raises UsageError for one of `named` that isn't there."""
    configure_plugins(enabled=enabled, notify=_announce)
    for name in named:
        resolve_plugin(name)
    if enabled:
        before_lookup(lambda: load_found_plugins(named=named))


def _announce(plugin: Plugin) -> None:
    if plugin.path == Path.cwd() / FOLDER:
        console.note(f"loaded ./{FOLDER}: {', '.join(plugin.registered) or 'it registers nothing'}")
    elif not plugin.registered and not plugin.failures:
        console.note(f"warning: plugin {plugin.path or plugin.name} registers no backbone and no head.")
    for module, reason in plugin.failures.items():
        console.note(f"warning: plugin {module} is not loaded ({reason}).")


def main() -> None:
    """Run the command line; never returns."""
    try:
        app()
    except SeghieroError as error:
        _fail(str(error), error.exit_code, error)
    except BrokenPipeError:  # the reader of our output, `head` say, has gone; nothing is left to tell it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _fail(_explained(error), 4, error)
    except (RuntimeError, MemoryError) as error:
        if "torch" not in sys.modules:
            raise
        from seghiero_core.devices import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        _fail(_less_memory(error), 4, error)


def _explained(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    advice = {
        errno.ENOSPC: "the disk is full; free some space, or choose another folder (output.dir, --out).",
        errno.EACCES: "no permission; choose a folder that you may write to (output.dir, --out).",
        errno.EROFS: "the file system is read-only; choose another folder (output.dir, --out).",
    }
    return where + advice.get(error.errno, error.strerror or str(error))


def _less_memory(error: BaseException) -> str:
    advice = {
        "eval": "a smaller --batch-size",
        "predict": "a smaller --batch-size or --tile",
        "train": "a smaller training.batch_size, transform.size or backbone",
    }
    tries = advice.get(console.command, "a smaller network, or a machine with more memory")
    if type(error).__name__ != "OutOfMemoryError":
        return f"this machine ran out of memory; use {tries}."
    return f"the GPU ran out of memory; use {tries}{', or --device cpu' if '--' in tries else ''}."


def _fail(message: str, code: int, error: BaseException) -> None:
    if console.debug:
        raise error
    console.error(message)
    sys.exit(code)
