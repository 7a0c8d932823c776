"""The folder of a run: which process may write to it, and which of its files are removed."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from seghiero_core.errors import DeviceError, UsageError

_WRITTEN = (
    *("config.yaml", "metrics.jsonl", "weights.json", "validation.png", "bad_batch.json", "seghiero"),
    *("model*.onnx", "model*.pt2"),
    *("checkpoints", "best", "last", ".best.*", ".last.*"),
)
"""What seghiero writes into a run folder (trackers write to `seghiero`); nothing else in it is ever removed."""


def check_run_folder(folder: Path, *, resume: bool, force: bool) -> None:
    """Check that training into a folder overwrites nothing against the user's will.

    Args:
        folder: The run folder; it need not exist.
        resume: Whether an existing run is to be continued.
        force: Whether an existing run is to be overwritten.

    Raises:
        UsageError: When the folder holds a run and neither flag is given, when it holds other files, or when both
            flags are given.
    """
    if resume and force:
        raise UsageError("--resume and --force can't be combined; give one of them.")
    is_run = (folder / "checkpoints").is_dir()  # made before anything else is written
    if folder.exists() and not is_run and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty and not a run folder; set another output.name.")
    if is_run and any((folder / "checkpoints").iterdir()) and not (resume or force):
        raise UsageError(
            f"{folder} already holds a run; continue it (--resume), overwrite it (--force), or set another output.name."
        )


@contextmanager
def lock_run_folder(folder: Path, *, resume: bool, force: bool) -> Iterator[None]:
    """Make a run folder and keep other processes from training into it.

    The lock is the operating system's, on a file beside the folder, so it survives the removal of the folder and ends
    with the process, however that ends; a lock file that a killed process left behind means nothing. Child processes
    don't inherit it (filelock closes its file in them), so the loader's workers, which may outlive a killed run by
    seconds, don't block the next one.

    Args:
        folder: The run folder. Without `resume`, what an earlier run wrote is removed from it.
        resume: As for `check_run_folder`, which is called again under the lock.
        force: The same.

    Yields:
        Nothing; the folder is locked until the block ends.

    Raises:
        UsageError: When another process has the lock; the message names it.
        DeviceError: When the file system has no locks.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
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
        if not resume:
            _remove_outputs(folder)
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        yield
    finally:
        with contextlib.suppress(PermissionError):  # Windows removes no file that is open
            path.unlink(missing_ok=True)
        lock.release()


def _owner(path: Path) -> str:
    try:
        return path.read_text(errors="replace") or "another process"
    except OSError:
        return "another process"


def _remove_outputs(folder: Path) -> None:
    for path in [path for pattern in _WRITTEN for path in folder.glob(pattern)]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
