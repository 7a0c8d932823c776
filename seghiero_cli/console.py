"""The one output sink: results to stdout, progress and hints to stderr; rich on a terminal, plain text elsewhere."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

debug = False
"""Set by --debug: errors are raised with their traceback instead of printed."""
command = ""
"""The command that runs; the advice of some errors depends on it."""


def is_main_process() -> bool:
    """Whether this process is the one that speaks, of several that a launcher started."""
    return int(os.environ.get("RANK", "0")) == 0


def result(text: str = "") -> None:
    """A line of the command's result, on stdout."""
    print(text, flush=True)


def result_json(document: Any) -> None:
    """The command's result as one JSON document on stdout; NaN has no place in it."""
    print(json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False), flush=True)


def result_json_line(document: Any) -> None:
    """One of many results, as a line of JSON on stdout."""
    print(json.dumps(document, allow_nan=False, ensure_ascii=False), flush=True)


def note(text: str) -> None:
    """Progress or a hint, on stderr."""
    print(text, file=sys.stderr, flush=True)


def error(message: str) -> None:
    """An error's message, on stderr."""
    if sys.stderr.isatty():
        from rich.console import Console

        Console(stderr=True, highlight=False).print("[bold red]error:[/bold red]", end=" ")
    else:
        print("error:", end=" ", file=sys.stderr)
    print(message, file=sys.stderr, flush=True)


def shown(path: Path) -> str:
    """A path as the user would type it: relative where it lies below the current folder."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> None:
    """A table on stdout; `right` holds the numbers of the columns to align right."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        rich_table = Table()
        for i, column in enumerate(columns):
            rich_table.add_column(column, justify="right" if i in right else "left")
        for row in rows:
            rich_table.add_row(*row)
        if title:
            Console().print(f"\n[bold]{title}[/bold]", highlight=False)
        Console().print(rich_table)
        return
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    if title:
        print(title)
    for row in [columns, *rows]:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
    print(flush=True)
