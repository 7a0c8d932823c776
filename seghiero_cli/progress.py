"""Progress of long commands on stderr."""

from __future__ import annotations

import sys
import time
from typing import Any

from seghiero_cli import console


class Progress:
    """A progress line: rewritten in place on a terminal and erased at the end; elsewhere printed every 10 s.

    Use it as a context manager.

    Attributes:
        live: Whether stderr is a terminal.
        started: When the context was entered, s of the monotonic clock.
    """

    def __enter__(self) -> Progress:
        self.live = sys.stderr.isatty()
        self.started = self._shown_at = time.monotonic()
        return self

    def show(self, text: str) -> None:
        """Show `text`, unless something was shown less than 0.1 s (terminal) or 10 s (elsewhere) ago.

        Args:
            text: One line.
        """
        now = time.monotonic()
        if now - self._shown_at < (0.1 if self.live else 10):
            return
        self._shown_at = now
        if self.live:
            print(f"\r{text}", end="\033[K", file=sys.stderr, flush=True)
        else:
            console.note(text)

    @property
    def seconds(self) -> float:
        """Seconds since the context was entered."""
        return time.monotonic() - self.started

    def __exit__(self, *_: object) -> None:
        if self.live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def show_evaluation(progress: Progress, event: dict[str, Any]) -> None:
    """Show an event of `evaluate_checkpoint`.

    Args:
        progress: Where to show it.
        event: The event.
    """
    if event["event"] == "warning":
        console.note(f"warning: {event['text']}")
    else:
        progress.show(f"measuring batch {event['batch']} of {event['batches']}")
