"""What is wrong with a data set: findings of one kind in many files are one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seghiero_core.errors import DataError, shorten


class FileError(DataError):
    """A fault of one file that other files may have, too.

    Args:
        message: The message, where this is the only file with the fault.
        path: The file.
        kind: A word for the fault.
        many: The message for several files, with the fields {count} and {files}.
        detail: What differs from file to file, such as a size.
        fix: The sentences that say what to do.
        fix_many: The same for several files. Default: `fix`.
    """

    def __init__(
        self,
        message: str,
        path: Path | None = None,
        *,
        kind: str = "data",
        many: str = "",
        detail: str = "",
        fix: str = "",
        fix_many: str = "",
    ) -> None:
        super().__init__(message, fix=fix, kind=kind)
        self.path, self.many, self.detail, self.fix_many = path, many, detail, fix_many or fix


def missing_file(path: Path) -> FileError:
    """Make the error for a file that was there before.

    Args:
        path: The file.

    Returns:
        The error.
    """
    return FileError(
        f"{path} no longer exists.",
        path,
        kind="missing",
        many="{count} files no longer exist: {files}.",
        fix="Restore it, or remove its pair.",
        fix_many="Restore them, or remove their pairs.",
    )


def unreadable_file(path: Path, reason: str) -> FileError:
    """Make the error for a file that can't be decoded.

    Args:
        path: The file.
        reason: What the decoder says.

    Returns:
        The error.
    """
    return FileError(
        f"{path} can't be read ({reason}).",
        path,
        kind="unreadable",
        many="{count} files can't be read: {files}.",
        detail=reason,
        fix="Replace the file, or remove it and its pair.",
        fix_many="Replace them, or remove them and their pairs.",
    )


@dataclass(frozen=True)
class DataFinding:
    """Something about a data set that is wrong, or probably not meant.

    Attributes:
        level: "error" if it stops training, else "warning".
        kind: A word for it, such as "jpeg_mask".
        text: What was found.
        fix: What to do; empty where `text` says it.
        files: The images or masks that show it, as `Reader.files` names them; not always all of them.
    """

    level: str
    kind: str
    text: str
    fix: str = ""
    files: tuple[Path, ...] = ()

    def __str__(self) -> str:
        return f"{self.text} {self.fix}".strip()

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as plain values.

        Returns:
            Their names and values.
        """
        return {**vars(self), "files": [str(path) for path in self.files]}


def findings_of(faults: Iterable[DataError]) -> list[DataFinding]:
    """Join faults of the same kind.

    Args:
        faults: `FileError` or other errors, which are kept as they are.

    Returns:
        Errors, in the order in which the kinds first occur.
    """
    kinds: dict[str, list[DataError]] = {}
    for fault in faults:
        kinds.setdefault(getattr(fault, "many", "") or str(fault), []).append(fault)
    return [_finding(group) for group in kinds.values()]


def report_faults(faults: Iterable[DataError]) -> str:
    """Join the messages of faults: one line per kind, with the number of files and three examples.

    Args:
        faults: `FileError` or other errors, whose messages are kept as they are.

    Returns:
        One or more lines, in the order in which the kinds first occur.
    """
    return "\n".join(map(str, findings_of(faults)))


def name_files(paths: Sequence[Path], details: Sequence[str] = ()) -> str:
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


def _finding(group: list[DataError]) -> DataFinding:
    first = group[0]
    files = tuple(fault.path for fault in group if isinstance(fault, FileError) and fault.path)
    if len(group) == 1 or not isinstance(first, FileError) or not first.many:
        return DataFinding("error", first.kind, str(first).removesuffix(first.fix).strip(), first.fix, files)
    named = name_files(files, [fault.detail for fault in group])
    return DataFinding("error", first.kind, first.many.format(count=len(group), files=named), first.fix_many, files)
