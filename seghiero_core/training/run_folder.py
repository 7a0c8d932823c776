"""The folder of a run: which process may write to it, and which of its files are removed."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from seghiero_core.atomic import check_writable, make_folder
from seghiero_core.errors import DeviceError, UsageError
from seghiero_core.run_files import (
    LIST_NAME,
    checkpoint_folders,
    is_listed,
    is_temporary,
    record_file,
    remove_checkpoint,
    remove_recorded_files,
    remove_temporary_files,
    start_list,
)
from seghiero_core.training.trackers import TRACKER_FOLDER

_FILES = ("config.yaml", "metrics.jsonl", "validation.png", "environment.json", "report.html")
_FILES_OF_SOME = ("weights.json", "class_weights.json", "bad_batch.json")  # listed when they are written
_FOLDERS = ("checkpoints", TRACKER_FOLDER)
_LINKS = ("best", "last")
"""What training writes into a run folder."""


def check_run_folder(folder: Path, *, resume: bool, force: bool) -> None:
    """Check that training into a folder overwrites nothing against the user's will.

    Args:
        folder: The run folder; it need not exist.
        resume: Whether an existing run is to be continued.
        force: Whether an existing run is to be overwritten.

    Raises:
        UsageError: When the folder holds a run and neither flag is given, when it holds only other files, when
            something is in the way of what training writes, or when both flags are given.
    """
    if resume and force:
        raise UsageError("--resume and --force can't be combined; give one of them.")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; set another output.name.")
    if _is_empty(folder):
        return
    has_list = (folder / LIST_NAME).exists()
    if not has_list and not checkpoint_folders(folder):
        raise UsageError(f"{folder} is not empty and not a run folder; set another output.name.")
    if not (resume or force):
        raise UsageError(
            f"{folder} already holds a run; continue it (--resume), overwrite it (--force), or set another output.name."
        )
    if force and not has_list:
        raise UsageError(
            f"{folder} has no list of the files that seghiero wrote ({LIST_NAME}; older versions kept none), so "
            "--force can't tell them from yours; delete the folder, or set another output.name."
        )
    for names, kind in (((LIST_NAME, *_FILES, *_FILES_OF_SOME), "a file"), (_FOLDERS, "a folder"), (_LINKS, "a link")):
        for path in [folder / name for name in names]:
            if os.path.lexists(path) and _kind(path) != kind:
                raise UsageError(f"{path} is {_kind(path)} where training writes {kind}; move it away.")
    for path in [folder / name for name in (*_FILES, *_FILES_OF_SOME)] if has_list else []:
        if path.exists() and not is_listed(folder, path):
            raise UsageError(
                f"{path} isn't in the list of what seghiero wrote ({LIST_NAME}), and training may replace it; "
                "move it away."
            )


def _is_empty(folder: Path) -> bool:
    """Whether there is nothing in a folder, or only an empty folder for checkpoints and what a kill left."""
    paths = [path for path in folder.iterdir() if not is_temporary(path)] if folder.exists() else []
    return all(path.name == "checkpoints" and _kind(path) == "a folder" and not any(path.iterdir()) for path in paths)


def _kind(path: Path) -> str:
    if path.is_symlink():
        return "a link"
    return "a folder" if path.is_dir() else "a file"


@contextmanager
def lock_run_folder(folder: Path, *, resume: bool, force: bool) -> Iterator[None]:
    """Keep other processes from training into a run folder, and check that this one can write to it.

    The lock is the operating system's, on a file beside the folder, so it survives the removal of the folder and ends
    with the process, however that ends; a lock file that a killed process left behind means nothing. Child processes
    don't inherit it (filelock closes its file in them), so the loader's workers, which may outlive a killed run by
    seconds, don't block the next one.

    Args:
        folder: The run folder; it need not exist. Nothing in it is changed.
        resume: As for `check_run_folder`, which is called again under the lock.
        force: The same.

    Yields:
        Nothing; the folder is locked until the block ends.

    Raises:
        UsageError: When another process has the lock; the message names it.
        DeviceError: When the file system has no locks, or takes no new files.
        OSError: When the folder can't be written to.
    """
    new_folders = [parent for parent in folder.parents if not parent.exists()]
    make_folder(folder.parent)
    path = folder.with_name(f".{folder.name}.lock")
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        owner = _owner(path)
        raise UsageError(f"{folder} is in use by {owner}; wait for it to end, or set another output.name.") from None
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            error.filename = error.filename or str(path)  # which the message names
            raise
        text = f"{folder.parent} is on a file system without file locks ({error.strerror}); set another output.dir."
        raise DeviceError(text) from None
    try:
        with contextlib.suppress(PermissionError):  # on Windows the locked file can't be written: it names no owner
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        check_run_folder(folder, resume=resume, force=force)
        for existing in (folder, folder / "checkpoints"):
            if existing.is_dir():
                check_writable(existing)
        yield
    finally:
        with contextlib.suppress(PermissionError):  # Windows removes no file that is open
            path.unlink(missing_ok=True)
        lock.release()
        for parent in new_folders:
            with contextlib.suppress(OSError):  # it is not empty: there is a run now
                parent.rmdir()


def begin_run(folder: Path, *, resume: bool) -> list[str]:
    """Make the locked folder of a run ready for training.

    Args:
        folder: The run folder. What a killed process left half-written there is removed, and without `resume` all
            that seghiero wrote.
        resume: Whether an existing run is continued.

    Returns:
        The names of what stays in the folder of an overwritten run, because seghiero didn't write it.
    """
    kept: list[str] = []
    folder.mkdir(parents=True, exist_ok=True)
    remove_temporary_files(folder)
    if not resume:
        _remove_outputs(folder)
        kept = sorted(path.name for path in folder.iterdir() if path.name != LIST_NAME)
    if not resume or not (folder / LIST_NAME).exists():
        of_old_run = [name for name in _FILES_OF_SOME if resume and (folder / name).exists()]
        start_list(folder, [*_FILES, *of_old_run])
    for name in _FILES:
        if not is_listed(folder, folder / name):  # a file that the version which began the run didn't write
            record_file(folder, folder / name, changes=True)
    (folder / "checkpoints").mkdir(exist_ok=True)
    return kept


def _owner(path: Path) -> str:
    try:
        return path.read_text(errors="replace") or "another process"
    except OSError:
        return "another process"


def _remove_outputs(folder: Path) -> None:
    """Remove what seghiero wrote; the list itself comes last, so that a process killed here can be repeated."""
    for name in _LINKS:
        (folder / name).unlink(missing_ok=True)
    checkpoints = folder / "checkpoints"
    if checkpoints.is_dir():
        for checkpoint in checkpoints.iterdir():
            remove_checkpoint(checkpoint)
        with contextlib.suppress(OSError):  # other files are in it
            checkpoints.rmdir()
    remove_recorded_files(folder)
