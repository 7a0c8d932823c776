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
    """As a context: the first SIGINT or SIGTERM sets `requested`, the second acts at once, as without it."""

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

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self.__exit__()

    def leave(self, message: str) -> NoReturn:
        """Raise what ends the run with exit code 130."""
        raise Interrupted(message)
