"""The folder of a run: who may write to it, and when what it holds is kept."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from seghiero_core.errors import UsageError

WRITTEN = (
    *("config.yaml", "metrics.jsonl", "weights.json", "validation.png", "bad_batch.json", "seghiero"),
    *("model*.onnx", "model*.pt2"),
    *("checkpoints", "best", "last", ".best.*", ".last.*"),
)
"""What we write into a run folder, `seghiero` by trackers; nothing else in it is ever removed."""


def check_run_folder(folder: Path, *, resume: bool, force: bool) -> None:
    """Raise UsageError where training into `folder` would overwrite what it holds."""
    if resume and force:
        raise UsageError("give either --resume or --force, not both.")
    is_run = (folder / "checkpoints").is_dir()  # made before anything else is written
    if folder.exists() and not is_run and any(folder.iterdir()):
        raise UsageError(f"{folder} holds files that are no run; set another output.name.")
    if is_run and any((folder / "checkpoints").iterdir()) and not (resume or force):
        raise UsageError(
            f"{folder} holds a run; go on with it (--resume), overwrite it (--force), or set another output.name."
        )


@contextmanager
def claimed(folder: Path, *, resume: bool, force: bool) -> Iterator[None]:
    """As a context: `folder` exists, is ours alone, and without `resume` holds nothing that we write.

    Raises UsageError where another process trains into it. The lock is the operating system's on a file beside the
    folder, so it survives the folder's removal and ends with the process, however that ends; a file that a killed
    process left means nothing. (A POSIX record lock: unlike flock's, it isn't inherited by the loader's workers,
    which may outlive a killed run by seconds.)
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_name(f".{folder.name}.lock")
    handle = _lock(path, folder)
    try:
        check_run_folder(folder, resume=resume, force=force)
        if not resume:
            _empty(folder)
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _empty(folder: Path) -> None:
    for path in [path for pattern in WRITTEN for path in folder.glob(pattern)]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _lock(path: Path, folder: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), path.stat()):
                os.ftruncate(handle, 0)
                os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return handle
        except FileNotFoundError:  # its last owner removed it between our open and our lock; so try again
            pass
        except (BlockingIOError, PermissionError):
            owner = os.pread(handle, 200, 0).decode(errors="replace") or "another process"
            os.close(handle)
            raise UsageError(f"{folder} is in use by {owner}; wait for it, or set another output.name.") from None
        os.close(handle)
