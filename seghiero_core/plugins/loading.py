"""Loading plugins: modules outside this package that register backbones and heads.

A plugin is a folder, a single .py file, or an installed package. Plugins are loaded from `./seghiero_plugins`, from
`plugins:` in a config that the user names, from `$SEGHIERO_PLUGINS`, by name, and from entry points in the group
`seghiero.plugins`; from nowhere else, and never because a checkpoint lists them.

The functions here use the process's `PluginLoader`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from seghiero_core.errors import UsageError
from seghiero_core.plugins.loader import REGISTRIES, PluginLoader
from seghiero_core.plugins.sources import Plugin

_current = PluginLoader()


def current_loader() -> PluginLoader:
    """Return the loader that this process uses.

    Returns:
        The loader of the innermost `use_loader` block, or the process's own.
    """
    return _current


@contextlib.contextmanager
def use_loader(loader: PluginLoader) -> Iterator[PluginLoader]:
    """Use another loader within a `with` block, and unload its plugins at the end; for tests.

    Args:
        loader: The loader that the registries and the functions of this module use within the block.

    Yields:
        `loader`.
    """
    before = _current
    _connect(loader)
    try:
        yield loader
    finally:
        loader.unload()
        _connect(before)


def configure_plugins(*, enabled: bool = True, notify: Callable[[Plugin], None] | None = None) -> None:
    """Turn plugins on or off for this process.

    Args:
        enabled: False loads no plugin at all.
        notify: Called with each plugin after it was loaded.
    """
    _current.enabled, _current.notify = enabled, notify


def load_plugins(named: Iterable[str | Path], *, base: Path | str = "") -> list[Plugin]:
    """Load plugins by path or module name.

    Args:
        named: Folders or .py files, or installed packages or modules.
        base: The folder that relative paths start from. Default: the current folder.

    Returns:
        The plugins. What failed inside one is in its `failures`.

    Raises:
        UsageError: When one of `named` doesn't exist, or it isn't a list; nothing is loaded then.
    """
    if isinstance(named, str | Path):
        raise UsageError(f"load_plugins: expected a list of plugins, found '{named}'; write ['{named}'].")
    return _current.load(named, base=base)


def load_found_plugins(folder: Path | str = "", named: Iterable[str] = ()) -> list[Plugin]:
    """Load every plugin that can be found; see `PluginLoader.load_found`.

    Args:
        folder: Where to look for `seghiero_plugins`, and where relative paths start. Default: the current folder.
        named: Further plugins, as for `load_plugins`.

    Returns:
        The plugins.

    Raises:
        UsageError: When one of `named` doesn't exist.
    """
    return _current.load_found(folder, named)


def load_plugins_on_demand(named: Iterable[str] = ()) -> None:
    """Call `load_found_plugins` as soon as a component is looked up that isn't built in.

    Args:
        named: As for `load_found_plugins`.
    """
    _current.postpone(named)


def plugin_of(module: str) -> Plugin | None:
    """Find the plugin that a module belongs to.

    Args:
        module: The name of an imported module.

    Returns:
        The plugin, or None if the module isn't part of any loaded one.
    """
    return _current.plugin_of(module)


def _connect(loader: PluginLoader) -> None:
    global _current
    _current = loader
    for registry in REGISTRIES:
        registry.plugins = loader


_connect(_current)
