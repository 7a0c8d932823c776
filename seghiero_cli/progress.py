"""Progress of long commands on stderr."""

from __future__ import annotations

import sys
import time

from seghiero_cli import console


class Progress:
    """One line that is rewritten on a terminal, and gone at the end; elsewhere a line every 10 s."""

    def __enter__(self) -> Progress:
        self.live = sys.stderr.isatty()
        self.started = self.said = time.monotonic()
        return self

    def show(self, text: str) -> None:
        """Say `text`, unless something was said just now."""
        now = time.monotonic()
        if now - self.said < (0.1 if self.live else 10):
            return
        self.said = now
        if self.live:
            print(f"\r{text}", end="\033[K", file=sys.stderr, flush=True)
        else:
            console.note(text)

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self.started

    def __exit__(self, *_: object) -> None:
        if self.live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
