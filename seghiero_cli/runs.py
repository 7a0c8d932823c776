"""The run or checkpoint that `eval`, `export` and `predict` are given."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from seghiero_cli import console
from seghiero_core.errors import UsageError

MOST_COMMANDS = 10
"""How many runs are listed with the command for each."""


def find_named_checkpoint(path: Path | None) -> Path:
    """Find the checkpoint that a command is given, and say on stderr which one that is.

    Args:
        path: What `seghiero_core.runs.find_checkpoint` accepts.

    Returns:
        The checkpoint folder, which may be a link.

    Raises:
        UsageError: When no checkpoint is found; or where there are several runs, with the command for each.
    """
    from seghiero_core.runs import SeveralRuns, find_checkpoint

    try:
        folder = find_checkpoint(path)
    except SeveralRuns as error:
        commands = [f"  {_command(sys.argv[1:], path, run)}" for run in error.runs[:MOST_COMMANDS]]
        if len(error.runs) > MOST_COMMANDS:
            commands.append(f"  ... and {len(error.runs) - MOST_COMMANDS} more")
        lines = [f"{path} holds {len(error.runs)} runs; name one of them, newest first:", *commands]
        raise UsageError("\n".join(lines)) from None
    if folder != path and console.is_main_process():
        newest = "no run given, using the newest: " if path is None else ""
        console.note(f"checkpoint: {newest}{console.display_path(folder)} ({folder.resolve().name})")
    return folder


def _command(words: Sequence[str], path: Path | None, run: Path) -> str:
    """The command line of this process with `run` in the place of `path`."""
    places = [i for i, word in enumerate(words) if path == Path(word)]
    # an option's value, such as that of --out, may be the same path
    arguments = [i for i in places if not words[i - 1].startswith("-")]
    position = [*arguments, *places[::-1], len(words)][0]
    return shlex.join(["seghiero", *words[:position], str(run), *words[position + 1 :]])
