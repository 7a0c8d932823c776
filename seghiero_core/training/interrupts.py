"""Ctrl-C and SIGTERM as a request that the loop answers at the end of its step."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import NoReturn

from seghiero_core.errors import SeghieroError


class Interrupted(SeghieroError):
    """The run was asked to stop and has saved its state."""

    exit_code = 130


class StopSignal:
    """As a context: the first SIGINT or SIGTERM sets `requested`, the second ends the process at once.

    At once means by the system's own action, which doesn't wait for a kernel or a hung collective to come back;
    a shell sees exit code 130 (or 143).
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, _: int, frame: FrameType | None) -> None:
        self.requested = True
        for number in self._before:
            signal.signal(number, signal.SIG_DFL)

    def leave(self, message: str) -> NoReturn:
        """Raise what ends the run with exit code 130."""
        raise Interrupted(message)
