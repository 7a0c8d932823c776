"""The loops that measure time: one function over and over, or several in turns to compare them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

Call = Callable[[], object]
"""What is measured: a function without arguments."""


def read_clock(device: torch.device) -> float:
    """Read the clock for comparisons, after the device has finished.

    On the CPU with one thread it is the process's CPU time, which other programs stretch less than wall-clock time.

    Args:
        device: The device that computes.

    Returns:
        Seconds from an arbitrary start.
    """
    if device.type == "cpu" and torch.get_num_threads() == 1:
        return time.process_time()
    return read_wall_clock(device)


def read_wall_clock(device: torch.device) -> float:
    """Read the wall clock after the device has finished.

    Args:
        device: The device that computes.

    Returns:
        Seconds from an arbitrary start.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def time_in_turns(
    runs: Mapping[str, Call], rounds: int, device: torch.device, *, warm_up: int = 1, pause: float = 0.0
) -> dict[str, list[float]]:
    """Measure functions that take turns, round after round, so that noise on the machine affects all alike.

    Args:
        runs: The functions by name.
        rounds: How often each is measured.
        device: The device that they compute on.
        warm_up: Rounds before, which are not measured.
        pause: Seconds to wait before each call; the threads of some libraries spin for a while after a call.

    Returns:
        The seconds of every round, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(warm_up + rounds):
        for name, run in runs.items():
            time.sleep(pause)
            started = read_clock(device)
            run()
            if number >= warm_up:
                seconds[name].append(read_clock(device) - started)
    return seconds


def time_repeatedly(
    run: Call, device: torch.device, *, seconds: float, repeats: int | None = None, at_least: int = 3
) -> list[float]:
    """Measure the wall-clock time of one function again and again. Warm it up before.

    Args:
        run: The function.
        device: The device that it computes on.
        seconds: How long to go on, s.
        repeats: How often to measure it instead.
        at_least: How often to measure it even if that takes longer than `seconds`.

    Returns:
        The seconds of every call.
    """
    found: list[float] = []
    started = before = read_wall_clock(device)
    while len(found) < repeats if repeats else len(found) < at_least or before - started < seconds:
        run()
        after = read_wall_clock(device)
        found.append(after - before)
        before = after
    return found


def percentile_ms(seconds: Sequence[float], percent: float) -> float:
    """Compute a percentile of durations.

    Args:
        seconds: The durations, s.
        percent: Which percentile, 0..100; 50 is the median.

    Returns:
        The percentile, ms, interpolated linearly.
    """
    return float(np.percentile(seconds, percent)) * 1000
