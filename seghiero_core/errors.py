"""The errors a user can cause. Each is one message (what, where, how to fix) and an exit code for the command line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class SeghieroError(Exception):
    """Base of every error whose message is meant for the user. `exit_code` is what the command returns."""

    exit_code = 4


class UsageError(SeghieroError):
    """Something named on the command line or in a config isn't there or isn't right."""

    exit_code = 2


class ConfigError(UsageError):
    """One or several faults of a config, one per line."""


class DataError(SeghieroError):
    """A data folder, image or mask is missing or doesn't fit the config."""

    exit_code = 3


class DeviceError(SeghieroError):
    """The machine can't do what was asked: no such device, out of memory, disk full."""


class WeightsError(SeghieroError):
    """Weights that were asked for can't be had or don't fit."""


class CheckpointError(SeghieroError):
    """A checkpoint is damaged, missing a part, or of another kind of model."""


class CheckFailed(SeghieroError):
    """A parity check or a gate was not passed."""

    exit_code = 5


def shorten(items: Sequence[object], most: int = 3, separator: str = ", ") -> str:
    """Join the first `most` items, and say how many more there are: "a, b, c and 4 more"."""
    shown = separator.join(map(str, items[:most]))
    if len(items) <= most:
        return shown
    return f"{shown}{' ' if separator == ', ' else separator}and {len(items) - most} more"


def nearest(word: object, choices: Iterable[object]) -> str:
    """`" Did you mean 'x'?"` for the choice most like `word`, or an empty string when none is alike."""
    by_lower = {str(choice).lower(): str(choice) for choice in choices}
    close = difflib.get_close_matches(str(word).lower(), list(by_lower), n=1, cutoff=0.6)
    return f" Did you mean '{by_lower[close[0]]}'?" if close else ""
