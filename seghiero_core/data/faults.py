"""Faults of files: one sentence for one file, one line for many files with the same fault."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from seghiero_core.errors import DataError, shorten


class FileError(DataError):
    """A fault of one file that other files may have, too.

    Only `message` is required, because PyTorch raises the errors of data loading workers again with nothing else.

    Args:
        message: The whole message, where this is the only file with the fault.
        path: The file.
        many: The message for several files, with the fields {count} and {files}.
        detail: What differs from file to file, such as a size.
    """

    def __init__(self, message: str, path: Path | None = None, *, many: str = "", detail: str = "") -> None:
        super().__init__(message)
        self.path, self.many, self.detail = path, many, detail


def report_faults(faults: Iterable[DataError]) -> str:
    """Join the messages of faults: one line per kind, with the number of files and three examples.

    Args:
        faults: `FileError` or other errors, whose messages are kept as they are.

    Returns:
        One or more lines, in the order in which the kinds first occur.
    """
    kinds: dict[str, list[DataError]] = {}
    for fault in faults:
        kinds.setdefault(getattr(fault, "many", "") or str(fault), []).append(fault)
    return "\n".join(_report_kind(group) for group in kinds.values())


def name_files(paths: list[Path], details: list[str] | None = None) -> str:
    """Name the first three of several files.

    Args:
        paths: The files.
        details: A remark on each file; empty for none.

    Returns:
        For example "a.png (mode RGB), b.png (mode RGB), c.png (mode RGB) and 4 more in train/masks".
    """
    folder = Path(os.path.commonpath([path.parent for path in paths]))
    names = [path.relative_to(folder).as_posix() for path in paths]
    if details:
        names = [f"{name} ({detail})" if detail else name for name, detail in zip(names, details, strict=True)]
    return f"{shorten(names)} in {folder}"


def _report_kind(group: list[DataError]) -> str:
    first = group[0]
    if len(group) == 1 or not isinstance(first, FileError) or not first.many:
        return str(first)
    files = name_files([fault.path for fault in group], [fault.detail for fault in group])
    return first.many.format(count=len(group), files=files)
