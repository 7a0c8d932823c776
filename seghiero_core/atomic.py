"""Writing files that appear complete or not at all, and hashing them."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from seghiero_core.errors import DeviceError, UsageError


def temporary_name(path: Path, ending: str = "") -> Path:
    """Return a hidden name in the same folder, for content that is renamed to `path` once it is complete.

    Args:
        path: The final path.
        ending: Appended to the name, to tell several temporary files apart.

    Returns:
        A name that contains this process's id.
    """
    return path.with_name(f".{path.name}.{os.getpid()}{ending}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file or folder under a temporary name that replaces `path` if the `with` block raises no error.

    Args:
        path: A file, or a folder that doesn't exist yet. Its parent folder is created if needed.

    Yields:
        The temporary path to write to.

    Raises:
        DeviceError: When the file system takes no new files there.
    """
    make_folder(path.parent)
    temporary = temporary_name(path)
    try:
        with _creating(temporary, path):
            yield temporary
            temporary.replace(path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, unless it exists.

    Args:
        folder: The folder.

    Raises:
        DeviceError: When a file has one of these names, or the file system takes no new folder there.
        OSError: When the disk is full, or permission is missing.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        blocking = next(path for path in (folder, *folder.parents) if os.path.lexists(path) and not path.is_dir())
        raise DeviceError(f"can't write into {folder}: {blocking} is a file; choose another folder.") from None
    except FileNotFoundError:
        raise _cannot_create(folder) from None


def check_writable(folder: Path) -> None:
    """Check that files can be created in a folder, by creating one that vanishes at once.

    Args:
        folder: An existing folder.

    Raises:
        DeviceError: When its file system takes no new files.
        OSError: When the disk is full or read-only, or permission is missing.
    """
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except FileNotFoundError:
        raise _cannot_create(f"files in {folder}") from None
    except OSError as error:
        error.filename = str(folder)
        raise


@contextmanager
def _creating(temporary: Path, path: Path) -> Iterator[None]:
    """Name `path` in the errors of creating `temporary`, which the user has never heard of."""
    try:
        yield
    except OSError as error:
        if str(error.filename) == str(temporary):
            error.filename = str(path)
            if isinstance(error, FileNotFoundError):
                raise _cannot_create(path) from None
        raise


def _cannot_create(what: object) -> DeviceError:
    return DeviceError(f"can't create {what}: its file system takes no new files; choose another folder.")


def follow_umask(path: Path) -> None:
    """Give a file the permissions that new files get here; some libraries create files that only their owner can read.

    Args:
        path: The file.
    """
    sample = temporary_name(path, ".mode")
    try:
        sample.touch()
        shutil.copymode(sample, path)
    finally:
        sample.unlink(missing_ok=True)


def replace_link(link: Path, folder: Path) -> None:
    """Point a link at a folder atomically: a temporary link is renamed over the old one.

    Args:
        link: The link, which need not exist yet.
        folder: A folder below the link's parent; the link is relative.
    """
    temporary = temporary_name(link)
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(folder.relative_to(link.parent), target_is_directory=True)
    temporary.replace(link)
    sync(link.parent)


def remove_folder(folder: Path) -> None:
    """Delete a folder. It is hidden first, so that a process killed midway leaves no partial folder.

    Args:
        folder: The folder; nothing happens if it doesn't exist.
    """
    if folder.exists() and not folder.name.startswith("."):
        folder = folder.rename(temporary_name(folder, ".gone"))
    shutil.rmtree(folder, ignore_errors=True)


def sync(path: Path) -> None:
    """Flush a file or folder to the disk.

    Args:
        path: The file or folder.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content.

    Args:
        path: The file.

    Returns:
        64 hexadecimal digits.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_new_files(files: Mapping[Path, str], *, force: bool = False) -> None:
    """Write several text files, all of them or none. Folders are created as needed.

    Args:
        files: The text of each file.
        force: Replace existing files.

    Raises:
        UsageError: When a file exists and `force` is not set, or a file is where a folder is needed, or the reverse.
        OSError: When the disk is full or a folder isn't writable. As with UsageError, nothing has changed.
    """
    for path in files:
        if path.is_dir():
            raise UsageError(f"can't write {path}: it is a folder.")
        blocking = next((parent for parent in path.parents if parent.exists() and not parent.is_dir()), None)
        if blocking:
            raise UsageError(f"can't write {path}: {blocking} is a file.")
    existing = [str(path) for path in files if path.exists() or path.is_symlink()]
    if existing and not force:
        verb = "exists" if len(existing) == 1 else "exist"
        raise UsageError(
            f"{', '.join(existing)} already {verb}, nothing was written; choose another name or pass --force."
        )
    replaced = []
    with ExitStack() as undo:
        for path in files:
            for folder in reversed([parent for parent in path.parents if not parent.exists()]):
                make_folder(folder)
                undo.callback(folder.rmdir)
        for path, text in files.items():
            staged = temporary_name(path, ".new")
            undo.callback(staged.unlink, missing_ok=True)
            with _creating(staged, path), staged.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())  # a full disk may be reported only here
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
