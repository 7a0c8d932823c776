"""How the core reports progress: it never prints, it calls a function with an event."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Notify = Callable[[dict[str, Any]], None]
"""A function that receives events: dicts whose key "event" names their kind."""


def ignore_events(event: dict[str, Any]) -> None:
    """Do nothing: the `Notify` of callers that want no progress.

    Args:
        event: Ignored.
    """
