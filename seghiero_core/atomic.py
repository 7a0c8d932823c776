"""Writing several text files as one: all of them appear whole, or nothing changes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from seghiero_core.errors import UsageError


def write_new_files(files: Mapping[Path, str], *, force: bool = False) -> None:
    """Write each text to its path, making folders as needed. With `force`, existing files are replaced.

    Raises UsageError where a file exists (without `force`) or a file stands where a folder is needed, OSError where the
    disk is full or a folder can't be written; in each case everything is as it was.
    """
    for path in files:
        blocking = next((parent for parent in path.parents if parent.exists() and not parent.is_dir()), None)
        if blocking or path.is_dir():
            raise UsageError(f"{path} can't be written: {blocking or path} is a {'file' if blocking else 'folder'}.")
    there = [str(path) for path in files if path.exists() or path.is_symlink()]
    if there and not force:
        verb = "exists" if len(there) == 1 else "exist"
        raise UsageError(f"{', '.join(there)} {verb} already, so nothing was written; choose another name, or --force.")
    replaced = []
    with ExitStack() as undo:
        for path in files:
            for folder in reversed([parent for parent in path.parents if not parent.exists()]):
                folder.mkdir()
                undo.callback(folder.rmdir)
        for path, text in files.items():
            staged = _beside(path, "new")
            undo.callback(staged.unlink, missing_ok=True)
            with staged.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())  # a full disk may show only here
        for path in files:
            if path.exists() or path.is_symlink():
                old = _beside(path, "old")
                path.rename(old)
                undo.callback(old.replace, path)
                replaced.append(old)
            else:
                undo.callback(path.unlink, missing_ok=True)
            _beside(path, "new").rename(path)
        undo.pop_all()
    for old in replaced:
        old.unlink()


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{ending}")
