"""The errors a user can cause. Each has one message (what, where, how to fix) and an exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


class SeghieroError(Exception):
    """Base of every error whose message is meant for the user.

    Attributes:
        exit_code: The exit code of a command that ends with the error.
    """

    exit_code = 4


class UsageError(SeghieroError):
    """Something named on the command line or in a config doesn't exist or is invalid."""

    exit_code = 2


class ConfigError(UsageError):
    """One or more faults of a config, one per line."""


class DataError(SeghieroError):
    """A data folder, image or mask is missing or doesn't fit the config.

    Only the message is required, because PyTorch raises the errors of data loading workers again with nothing else.

    Args:
        message: The whole message, or what `fix` completes.
        fix: The sentences that say what to do.
        kind: A word for the fault, for reports.

    Attributes:
        rest: A reader of the samples that are there, which can still be checked, or None.
    """

    exit_code = 3
    rest: Any = None

    def __init__(self, message: str, *, fix: str = "", kind: str = "data") -> None:
        super().__init__(f"{message} {fix}" if fix else message)
        self.fix, self.kind = fix, kind


class DeviceError(SeghieroError):
    """The machine can't do what was requested: no such device, out of memory, disk full."""


class WeightsError(SeghieroError):
    """Requested weights are unavailable or don't fit the model."""


class CheckpointError(SeghieroError):
    """A checkpoint is damaged or incomplete, or belongs to another kind of model."""


class CheckFailed(SeghieroError):
    """A parity check or another check failed."""

    exit_code = 5


def shorten(items: Sequence[object], most: int = 3, separator: str = ", ") -> str:
    """Join the first few items of a list, and count the others.

    Args:
        items: What to list.
        most: How many items to show.
        separator: What to put between them.

    Returns:
        For example "a, b, c and 4 more".
    """
    shown = separator.join(map(str, items[:most]))
    if len(items) <= most:
        return shown
    before_and = " " if separator == ", " else separator
    return f"{shown}{before_and}and {len(items) - most} more"


def nearest(word: object, choices: Iterable[object]) -> str:
    """Suggest the choice most similar to a misspelled word.

    Args:
        word: What the user gave.
        choices: What is allowed.

    Returns:
        " Did you mean 'x'?" with a leading space, to append to a message; empty if no choice is similar.
    """
    by_lower = {str(choice).lower(): str(choice) for choice in choices}
    close = difflib.get_close_matches(str(word).lower(), list(by_lower), n=1, cutoff=0.6)
    return f" Did you mean '{by_lower[close[0]]}'?" if close else ""


def nearest_path(path: str | Path) -> str:
    """Suggest what exists near a path that doesn't.

    Args:
        path: A file or folder that doesn't exist.

    Returns:
        A sentence with a leading space: the most similar name, else what the folder contains; empty if the folder
        can't be read.
    """
    path = Path(path)
    missing, folder = path, path.parent
    while not folder.exists() and folder != folder.parent:
        missing, folder = folder, folder.parent
    try:
        there = sorted(each for each in folder.iterdir() if not each.name.startswith("."))
    except OSError:
        return ""

    def similarity(each: Path) -> tuple[float, bool]:
        stems = difflib.SequenceMatcher(None, missing.stem.lower(), each.stem.lower())
        return stems.ratio(), each.suffix == missing.suffix

    if there and similarity(best := max(there, key=similarity)) >= (0.6, False):
        return f" Did you mean '{best}'?"
    if missing != path:
        return f" The folder {missing} doesn't exist."
    alike = [each.name for each in there if each.suffix == path.suffix]
    place = "The current folder" if folder == Path() else str(folder)
    return f" {place} contains {shorten(alike, 5)}." if alike else ""
