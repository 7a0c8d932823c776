"""How the core reports what happens: it calls a function with an event and never prints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Notify = Callable[[dict[str, Any]], None]
"""Receives an event, a dict whose key "event" names its kind."""


def ignore_events(event: dict[str, Any]) -> None:
    """Discard an event: the `Notify` of callers that want no progress."""
