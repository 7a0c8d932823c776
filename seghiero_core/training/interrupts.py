"""Ctrl-C and SIGTERM as a request that the training loop answers at the end of a step."""

from __future__ import annotations

import os
import signal
import socket
import threading
from types import FrameType

from seghiero_core.errors import SeghieroError


class Interrupted(SeghieroError):
    """The run was asked to stop and has saved its state."""

    exit_code = 130


_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_OPEN: set[int] = set()
"""The file descriptors that tell of signals."""


class StopSignal:
    """Context manager in which the first SIGINT or SIGTERM sets `requested` and the second ends the process at once.

    Under torchrun the second is ignored: a cluster signals every process, and torchrun passes its own signal on, so
    each process gets two. torchrun kills a process that has not stopped in time (by default 30 s).

    Python handles signals between two instructions of the main thread, and merges those that come during a long one,
    such as a backward pass. A thread counts them as they come, so the second does not wait for a kernel or a hung
    collective to return; a shell sees exit code 130 (or 143). Outside the main thread, where Python allows no signal
    handlers, signals are left as they are.

    Attributes:
        requested: Whether a signal has come.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            received, self._sent = socket.socketpair()
            self._sent.setblocking(False)
            _OPEN.add(self._sent.fileno())
            self._previous_fd = signal.set_wakeup_fd(self._sent.fileno(), warn_on_full_buffer=False)
            for number in _SIGNALS:
                self._previous[number] = signal.signal(number, self._request)
            threading.Thread(target=_exit_at_second_signal, args=(received,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous:
            for number, handler in self._previous.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._previous_fd)
            _OPEN.discard(self._sent.fileno())
            self._sent.close()  # ends the thread
            self._previous.clear()

    def _request(self, _: int, __: FrameType | None) -> None:
        self.requested = True


def _exit_at_second_signal(received: socket.socket) -> None:
    with received:
        count = 0
        while number := received.recv(1):
            if number[0] in _SIGNALS:
                count += 1
            if count == 2 and "TORCHELASTIC_RUN_ID" not in os.environ:
                os._exit(128 + number[0])


def _tell_only_of_own_signals() -> None:
    """Stop a forked process from writing its signals where its parent counts those of its own."""
    descriptor = signal.set_wakeup_fd(-1)
    if descriptor not in (-1, *_OPEN):
        signal.set_wakeup_fd(descriptor)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_tell_only_of_own_signals)
