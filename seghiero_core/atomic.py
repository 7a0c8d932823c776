"""Files that appear whole or not at all, and their digests."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from seghiero_core.errors import UsageError


def temporary_name(path: Path, ending: str = "") -> Path:
    """Return a hidden name beside `path`, for what is to be renamed to `path` once it is whole."""
    return path.with_name(f".{path.name}.{os.getpid()}{ending}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file or folder under a temporary name that replaces `path` when the block ends without an error.

    Args:
        path: The file, or a folder that doesn't exist yet. Its parent folder is made if needed.

    Yields:
        The temporary path to write to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
            staged = temporary_name(path, ".new")
            undo.callback(staged.unlink, missing_ok=True)
            with staged.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())  # a full disk may show only here
        for path in files:
            if path.exists() or path.is_symlink():
                old = temporary_name(path, ".old")
                path.rename(old)
                undo.callback(old.replace, path)
                replaced.append(old)
            else:
                undo.callback(path.unlink, missing_ok=True)
            temporary_name(path, ".new").rename(path)
        undo.pop_all()
    for old in replaced:
        old.unlink()
