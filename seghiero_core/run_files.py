"""What seghiero wrote into a run folder, so that nothing else is ever removed from it.

`seghiero-files.jsonl` has one line per file, {"path": relative path, "sha256": hash}. The hash is null for the files
that training goes on changing. A file whose hash differs was replaced by the user and is no longer ours. Records are
appended in one write, so that processes which write into one run at the same time lose none.

Checkpoints aren't listed: they are recognized by their name, their manifest and the names of their files.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from seghiero_core.atomic import file_sha256, remove_folder, replacing

LIST_NAME = "seghiero-files.jsonl"
MANIFEST = "manifest.json"
CHECKPOINT_FILES = frozenset(
    {
        MANIFEST,
        "model.safetensors",
        "training.safetensors",
        "config.yaml",
        "training.json",
        "metrics.json",
        "report.json",
    }
)
"""What a checkpoint folder contains."""

_CHECKPOINT_NAME = re.compile(r"(damaged-)*step-\d{8,}(-\d+)?")
_TEMPORARY_CHECKPOINT = re.compile(rf"\.{_CHECKPOINT_NAME.pattern}\.\d+(\.gone)?")
_TEMPORARY_FILE = re.compile(r"\.(metrics|report|manifest)\.json\.\d+")
_TEMPORARY_IN_RUN = re.compile(r"\.(last|best|metrics\.jsonl|report\.html|seghiero-files\.jsonl)\.\d+")


def start_list(run: Path, names: Iterable[str]) -> None:
    """Begin the list of a run, in place of an older one.

    Args:
        run: The run folder.
        names: The files that training writes and goes on changing, relative to the folder.
    """
    with replacing(run / LIST_NAME) as temporary:
        temporary.write_text("".join(_line(name, None) for name in names), encoding="utf-8")


def record_file(run: Path, path: Path, *, changes: bool = False) -> None:
    """Add a file, or all files in a folder, to the list of a run. Call it once they are complete.

    Nothing happens where the path isn't in the run folder, or the folder has no list: only training starts one.

    Args:
        run: The run folder.
        path: The file or folder.
        changes: Whether seghiero goes on changing the file; it need not exist yet.
    """
    if not (run / LIST_NAME).is_file():
        return
    root = run.resolve()
    files = [path] if changes or not path.is_dir() else [file for file in sorted(path.rglob("*")) if file.is_file()]
    lines = []
    for file in files:
        real = file.parent.resolve() / file.name
        if real.is_relative_to(root) and not real.is_symlink():
            lines.append(_line(real.relative_to(root).as_posix(), None if changes else file_sha256(real)))
    with (run / LIST_NAME).open("a+b") as file:
        file.seek(-min(1, file.seek(0, os.SEEK_END)), os.SEEK_END)
        torn = "" if file.read() in (b"", b"\n") else "\n"  # what a killed process left unfinished
        file.write((torn + "".join(lines)).encode())


def write_listed(run: Path, name: str, text: str) -> None:
    """Write a file that only some runs have, and add it to the list first.

    Args:
        run: The run folder.
        name: The file's name.
        text: Its content, which training may replace later.
    """
    record_file(run, run / name, changes=True)
    (run / name).write_text(text)


def is_listed(run: Path, path: Path) -> bool:
    """Check whether a file is in the list of a run, whatever its content is now.

    Args:
        run: The run folder.
        path: The file.

    Returns:
        True if it is.
    """
    return path in dict(_records(run))


def is_temporary(path: Path) -> bool:
    """Check whether the name of a file in a run folder is that of one that a process is writing, or was killed at.

    Args:
        path: The file or link.

    Returns:
        True if it is.
    """
    return _TEMPORARY_IN_RUN.fullmatch(path.name) is not None


def recorded_files(run: Path) -> list[Path]:
    """Find the listed files that are still what seghiero wrote.

    Args:
        run: The run folder.

    Returns:
        The regular files that exist in the folder, at their listed place and with their listed content. Links are never
        followed.
    """
    return [path for path, digest in dict(_records(run)).items() if _is_ours(run, path, digest)]


def remove_recorded_files(run: Path) -> None:
    """Remove the listed files that are still what seghiero wrote, and the folders that this leaves empty.

    Args:
        run: The run folder.
    """
    for file in recorded_files(run):
        file.unlink()
        folder = file.parent
        while folder != run and not any(folder.iterdir()):
            folder.rmdir()
            folder = folder.parent


def checkpoint_folders(run: Path) -> list[Path]:
    """Find the folders of checkpoints, intact or damaged.

    Args:
        run: The run folder.

    Returns:
        The folders named step-NUMBER that hold at least one file of a checkpoint, oldest first.
    """
    folders = [path for path in sorted((run / "checkpoints").glob("step-*")) if _CHECKPOINT_NAME.fullmatch(path.name)]
    return [folder for folder in folders if any((folder / name).exists() for name in CHECKPOINT_FILES)]


def remove_checkpoint(folder: Path) -> None:
    """Remove what seghiero wrote into a folder of `checkpoints`; nothing happens to a folder that isn't a checkpoint.

    Args:
        folder: The folder. It stays if it contains other files.
    """
    if folder.is_symlink() or not folder.is_dir():
        return
    if _TEMPORARY_CHECKPOINT.fullmatch(folder.name):
        shutil.rmtree(folder, ignore_errors=True)
    elif _CHECKPOINT_NAME.fullmatch(folder.name) and (folder / MANIFEST).is_file():
        if not has_other_files(folder):
            remove_folder(folder)
            return
        files = [path for path in folder.iterdir() if _is_checkpoint_file(path)]
        for path in sorted(files, key=lambda path: path.name == MANIFEST):  # without its manifest it is no checkpoint
            path.unlink()


def has_other_files(folder: Path) -> bool:
    """Check whether a checkpoint folder contains anything that seghiero didn't write.

    Args:
        folder: The folder; it need not exist.

    Returns:
        True if it does.
    """
    return folder.is_dir() and not all(_is_checkpoint_file(path) for path in folder.iterdir())


def remove_temporary_files(run: Path) -> None:
    """Remove what a killed process left half-written in a run folder and its checkpoints.

    Args:
        run: The run folder.
    """
    for path in [*run.iterdir(), *run.glob("checkpoints/step-*/.*")]:
        pattern = _TEMPORARY_IN_RUN if path.parent == run else _TEMPORARY_FILE
        if pattern.fullmatch(path.name) and (path.is_symlink() or path.is_file()):
            path.unlink()
    for folder in run.glob("checkpoints/.*"):
        remove_checkpoint(folder)


def _is_checkpoint_file(path: Path) -> bool:
    is_named = path.name in CHECKPOINT_FILES or _TEMPORARY_FILE.fullmatch(path.name)
    return bool(is_named) and path.is_file() and not path.is_symlink()


def _line(name: str, digest: str | None) -> str:
    return json.dumps({"path": name, "sha256": digest}) + "\n"


def _is_ours(run: Path, path: Path, digest: str | None) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    if path.parent.resolve() != run.resolve() / path.parent.relative_to(run):  # a folder on the way is a link
        return False
    return digest is None or file_sha256(path) == digest


def _records(run: Path) -> Iterator[tuple[Path, str | None]]:
    """Read the list. A line that a killed process left unfinished is passed over: its file stays."""
    try:
        lines = (run / LIST_NAME).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        try:
            record = json.loads(line)
            name, digest = PurePosixPath(record["path"]), record["sha256"]
        except (ValueError, TypeError, KeyError):
            continue
        if not name.is_absolute() and ".." not in name.parts:
            yield run / name, digest
