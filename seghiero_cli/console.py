"""All output of the command line: results to stdout, progress and hints to stderr."""

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
"""Name of the running command; the advice of some errors depends on it."""

global_options: list[str] = []
"""The options before the command that a repeated command needs too, such as --plugin."""


def is_main_process() -> bool:
    """Return whether this process prints; of several that a launcher started, only rank 0 does.

    Returns:
        True in a single process and in the one with `RANK` 0.
    """
    return int(os.environ.get("RANK", "0")) == 0


def result(text: str = "") -> None:
    """Print a line of the command's result to stdout.

    Args:
        text: The line, without its newline.
    """
    print(text, flush=True)


def result_json(document: Any) -> None:
    """Print the command's result to stdout as one indented JSON document.

    Args:
        document: Plain values.

    Raises:
        ValueError: If it holds NaN or an infinity, which JSON doesn't have.
    """
    print(json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False), flush=True)


def result_json_line(document: Any) -> None:
    """Print one of many results to stdout as a single line of JSON.

    Args:
        document: Plain values.

    Raises:
        ValueError: If it holds NaN or an infinity, which JSON doesn't have.
    """
    print(json.dumps(document, allow_nan=False, ensure_ascii=False), flush=True)


def note(text: str) -> None:
    """Print progress or a hint to stderr.

    Args:
        text: One or more lines.
    """
    print(text, file=sys.stderr, flush=True)


def error(message: str) -> None:
    """Print an error message to stderr.

    Args:
        message: One or more lines, without the leading "error:".
    """
    if sys.stderr.isatty():
        from rich.console import Console

        Console(stderr=True, highlight=False).print("[bold red]error:[/bold red]", end=" ")
    else:
        print("error:", end=" ", file=sys.stderr)
    print(message, file=sys.stderr, flush=True)


def display_path(path: Path) -> str:
    """Return a path as the user would type it.

    Args:
        path: An absolute or relative path.

    Returns:
        The path relative to the current folder if it lies below it, else `path` itself.
    """
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def plural(count: int, noun: str, ending: str = "s") -> str:
    """Return a count with its noun.

    Args:
        count: How many.
        noun: The singular.
        ending: What the plural adds to it.

    Returns:
        Text such as "1 image" or "2 images".
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}{ending}"


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> None:
    """Print a table to stdout: with borders on a terminal, as aligned plain text elsewhere.

    Args:
        title: A line above the table; empty for none.
        columns: Column headers.
        rows: Cells, as many per row as there are columns.
        right: Indices of the columns to align right.
    """
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        rich_table = Table(show_header=any(columns))
        for i, column in enumerate(columns):
            rich_table.add_column(column, justify="right" if i in right else "left", overflow="fold")
        for row in rows:
            rich_table.add_row(*row)
        if title:
            Console().print(f"\n[bold]{title}[/bold]", highlight=False)
        Console().print(rich_table)
        return
    lines = [columns, *rows] if any(columns) else rows
    widths = [max(len(row[i]) for row in lines) for i in range(len(columns))]
    if title:
        print(title)
    for row in lines:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
    print(flush=True)
