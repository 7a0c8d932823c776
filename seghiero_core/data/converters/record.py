"""The record of a conversion: a line of JSON for each image, with which a stopped conversion goes on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from seghiero_core.atomic import make_folder, replacing
from seghiero_core.data.converters.conversion import Item
from seghiero_core.errors import UsageError

RECORD_NAME = "conversion.jsonl"
_TEMPORARY = re.compile(r"\..+\.(\d+)")  # as `temporary_name` makes them


class Record:
    """The images that are done, by split and name.

    Args:
        path: The file.
        entries: What it holds so far.
    """

    def __init__(self, path: Path, entries: dict[str, dict[str, Any]]) -> None:
        self.path, self._entries = path, entries

    def entry(self, item: Item) -> dict[str, Any] | None:
        """Look up an image.

        Args:
            item: The image.

        Returns:
            Its entry; None if it isn't done.

        Raises:
            UsageError: When its annotation was changed after it was converted.
        """
        found = self._entries.get(_key(item))
        if found and found["changed"] != _changed(item):
            raise UsageError(
                f"{item.annotation} was changed after {self.path.parent} was written; convert to a new folder."
            )
        return found

    @contextmanager
    def appending(self) -> Iterator[Callable[[Item, dict[str, Any]], None]]:
        """Open the file for more images.

        Yields:
            A function that adds an image and its entry.
        """
        with self.path.open("a", encoding="utf-8") as file:

            def append(item: Item, entry: dict[str, Any]) -> None:
                entry = {"name": _key(item), "changed": _changed(item), **entry}
                file.write(json.dumps(entry, ensure_ascii=True) + "\n")
                file.flush()
                self._entries[_key(item)] = entry

            yield append


def open_record(out: Path, choices: dict[str, Any]) -> Record:
    """Begin the record of a conversion, or go on with it.

    Args:
        out: The folder to write; created if needed.
        choices: What the masks depend on, as plain values.

    Returns:
        The record.

    Raises:
        UsageError: When the folder holds other files, or a conversion with other choices.
    """
    path = out / RECORD_NAME
    choices = json.loads(json.dumps(choices))
    if path.is_file():
        header, *lines = path.read_text(encoding="utf-8").split("\n")
        before = json.loads(header)
        different = [key for key in choices if before.get(key) != choices[key]]
        if different:
            raise UsageError(
                f"{out} holds a conversion with other choices ({', '.join(different)} differ); choose a new folder, or "
                "remove it."
            )
        if lines and lines[-1]:  # the process was killed while it wrote this line
            with replacing(path) as temporary:
                temporary.write_text("\n".join([header, *lines[:-1], ""]), encoding="utf-8")
        for leftover in filter(_is_leftover, out.rglob(".*")):
            leftover.unlink(missing_ok=True)
        return Record(path, {entry["name"]: entry for line in lines[:-1] for entry in [json.loads(line)]})
    if out.exists() and (not out.is_dir() or any(not _is_leftover(each) for each in out.iterdir())):
        raise UsageError(f"{out} is not an empty folder; give a new folder, or empty it.")
    make_folder(out)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(choices) + "\n", encoding="utf-8")
    return Record(path, {})


def _is_leftover(path: Path) -> bool:
    """Whether a file is unfinished, of a process that was killed."""
    match = _TEMPORARY.fullmatch(path.name)
    return match is not None and not psutil.pid_exists(int(match[1]))


def _key(item: Item) -> str:
    return f"{item.split}/{item.name}"


def _changed(item: Item) -> int:
    """When the annotation was last changed, ns."""
    return item.annotation.stat().st_mtime_ns
