"""How the command line takes plugins in, and what it says about them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from seghiero_cli import console
from seghiero_core.plugins import FOLDER, Plugin, configure_plugins, load_found_plugins, resolve_plugin
from seghiero_core.registry import before_lookup


def use_plugins(named: Sequence[str], *, enabled: bool) -> None:
    """Have the plugins loaded once a command needs them. Raises UsageError for one of `named` that isn't there."""
    configure_plugins(enabled=enabled, notify=_announce)
    for name in named:
        resolve_plugin(name)
    if enabled:
        before_lookup(lambda: load_found_plugins(named=named))


def _announce(plugin: Plugin) -> None:
    if plugin.path == Path.cwd() / FOLDER:
        console.note(f"loaded ./{FOLDER}: {', '.join(plugin.registered) or 'it registers nothing'}")
    elif not plugin.registered and not plugin.failures:
        console.note(f"warning: plugin {plugin.path or plugin.name} registers no backbone and no head.")
    for module, reason in plugin.failures.items():
        console.note(f"warning: plugin {module} is not loaded ({reason}).")
