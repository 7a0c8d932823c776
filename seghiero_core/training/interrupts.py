"""Ctrl-C and SIGTERM as a request that the training loop answers at the end of a step."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

from seghiero_core.errors import SeghieroError


class Interrupted(SeghieroError):
    """The run was asked to stop and has saved its state."""

    exit_code = 130


class StopSignal:
    """Context manager in which the first SIGINT or SIGTERM sets `requested` and the second ends the process at once.

    Under torchrun the second is ignored: a cluster signals every process, and torchrun passes its own signal on, so
    each process gets two. torchrun kills a process that has not stopped in time (by default 30 s).

    "At once" is the operating system's default action, which does not wait for a kernel or a hung collective to
    return; a shell sees exit code 130 (or 143). Outside the main thread, where Python allows no signal handlers,
    signals are left as they are.

    Attributes:
        requested: Whether a signal has come.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, _: int, frame: FrameType | None) -> None:
        self.requested = True
        next_action = signal.SIG_IGN if "TORCHELASTIC_RUN_ID" in os.environ else signal.SIG_DFL
        for number in self._previous:
            signal.signal(number, next_action)
