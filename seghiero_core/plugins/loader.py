"""The object that loads plugins and remembers what it loaded.

The modules of a plugin folder are imported under the folder's own name, and its parent folder is appended to
`sys.path`: at the end it hides no installed module, and worker processes, which inherit `sys.path`, can unpickle the
plugin's classes. A module that can't be imported registers nothing; only the reason is kept.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import Distribution, EntryPoint, distribution, entry_points, packages_distributions
from pathlib import Path

from seghiero_core.errors import UsageError
from seghiero_core.plugins.sources import (
    FOLDER,
    GROUP,
    VARIABLE,
    Plugin,
    explain_failure,
    module_files,
    module_location,
    resolve_plugin,
)
from seghiero_core.readers import READERS
from seghiero_core.registry import BACKBONES, HEADS

REGISTRIES = (BACKBONES, HEADS, READERS)


def installed_entry_points() -> Sequence[EntryPoint]:
    """List the entry points through which installed packages announce their plugins.

    Returns:
        All entry points in the group `seghiero.plugins`.
    """
    return tuple(entry_points(group=GROUP))


class PluginLoader:
    """Finds plugins, imports them, and remembers what was loaded and what failed.

    Each process uses one; see `current_loader`. Tests create their own.

    Args:
        enabled: False loads nothing at all.
        notify: Called with each plugin after it was loaded.
        list_entry_points: Returns the entry points of installed plugins.

    Attributes:
        enabled, notify, list_entry_points: As above; may be set at any time.
        loaded: The plugins, by the path or module name they were loaded from.
    """

    def __init__(
        self,
        *,
        enabled: bool = True,
        notify: Callable[[Plugin], None] | None = None,
        list_entry_points: Callable[[], Iterable[EntryPoint]] = installed_entry_points,
    ):
        self.enabled = enabled
        self.notify = notify
        self.list_entry_points = list_entry_points
        self.loaded: dict[str, Plugin] = {}
        self._skipped: dict[str, str] = {}
        self._search_path: list[str] = []  # what was appended to sys.path
        self._postponed: list[str] | None = None

    @property
    def not_loaded(self) -> dict[str, str]:
        """Why something is not loaded, by what it is ("plugin seghiero_plugins.mynet")."""
        turned_off = {} if self.enabled else {"any plugin": "plugins are turned off by --no-plugins"}
        return turned_off | self._skipped

    def load(self, named: Iterable[str | Path], *, base: Path | str = "") -> list[Plugin]:
        """Load plugins by path or module name.

        Args:
            named: Folders or .py files, or installed packages or modules.
            base: The folder that relative paths start from. Default: the current folder.

        Returns:
            The plugins. What failed inside one is in its `failures`.

        Raises:
            UsageError: When one of `named` doesn't exist; nothing is loaded then.
        """
        if not self.enabled:
            return []
        found = [resolve_plugin(text, base) for text in named]
        return [self._load_path(place) if isinstance(place, Path) else self._load_installed(place) for place in found]

    def load_found(self, folder: Path | str = "", named: Iterable[str] = ()) -> list[Plugin]:
        """Load every plugin that can be found.

        These are `seghiero_plugins` in `folder`, then `named`, then those listed in `$SEGHIERO_PLUGINS`, then the entry
        points of installed packages.

        Args:
            folder: Where to look for `seghiero_plugins`, and where relative paths start. Default: the current folder.
            named: Further plugins, as for `load`.

        Returns:
            The plugins, including those of `$SEGHIERO_PLUGINS` that don't exist, with that failure.

        Raises:
            UsageError: When one of `named` doesn't exist.
        """
        if not self.enabled:
            return []
        own = Path(folder).resolve() / FOLDER
        plugins = [self._load_path(own)] if own.is_dir() else []
        plugins += self.load(named, base=folder)
        for text in filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)):
            try:
                plugins += self.load([text], base=folder)
            except UsageError as error:
                plugin = Plugin(text, None)
                self._fail(plugin, f"of ${VARIABLE}", str(error))
                plugins.append(self._finish(plugin))
        return plugins + [self._load_installed(point.module, point.dist) for point in self.list_entry_points()]

    def postpone(self, named: Iterable[str] = ()) -> None:
        """Put off `load_found` until a component is looked up that isn't built in.

        Plugins may be slow to import, or broken; commands that need none of them don't touch them.

        Args:
            named: As for `load_found`.
        """
        self._postponed = list(named)

    def load_postponed(self) -> None:
        """Do what `postpone` put off, if anything."""
        named, self._postponed = self._postponed, None
        if named is not None:
            self.load_found(named=named)

    def skip(self, what: str, reason: str) -> None:
        """Record that something is deliberately not loaded, for the message about a missing component.

        Args:
            what: What is skipped, such as "'extra' in cfg.yaml".
            reason: Why, and how to load it, without a full stop.
        """
        self._skipped[what] = reason

    def plugin_of(self, module: str) -> Plugin | None:
        """Find the plugin that a module belongs to.

        Args:
            module: The name of an imported module.

        Returns:
            The plugin, or None if the module isn't part of any loaded one.
        """
        place = _place_of(module)
        if place is None:
            return None
        return next((plugin for plugin in self.loaded.values() if plugin.contains(place)), None)

    def unload(self) -> None:
        """Forget every plugin: remove its components from the registries and its modules from `sys.modules`."""
        for registry in REGISTRIES:
            for name, entry in list(registry.entries.items()):
                if self.plugin_of(entry.build.__module__):
                    del registry.entries[name]
        names = {plugin.name for plugin in self.loaded.values()}
        modules = [module for module in sys.modules if module.partition(".")[0] in names and self.plugin_of(module)]
        for module in modules:
            del sys.modules[module]
        for folder in self._search_path:
            if folder in sys.path:
                sys.path.remove(folder)
        self.loaded.clear()
        self._skipped.clear()
        self._search_path.clear()
        self._postponed = None

    def _load_path(self, path: Path) -> Plugin:
        if str(path) in self.loaded:
            return self.loaded[str(path)]
        plugin = self.loaded[str(path)] = Plugin(path.stem if path.is_file() else path.name, path)
        if str(path.parent) not in sys.path:
            sys.path.append(str(path.parent))
            self._search_path.append(str(path.parent))
        importlib.invalidate_caches()
        for file in [path] if path.is_file() else module_files(path):
            parts = file.relative_to(path.parent).with_suffix("").parts
            self._import(plugin, ".".join(parts[:-1] if parts[-1] == "__init__" else parts), file)
        return self._finish(plugin)

    def _load_installed(self, module: str, installed: Distribution | None = None) -> Plugin:
        if module in self.loaded:
            return self.loaded[module]
        top = module.partition(".")[0]
        names = packages_distributions().get(top) if installed is None else None
        if names:
            installed = distribution(names[0])
        plugin = self.loaded[module] = Plugin(top, module_location(top))
        if installed is not None:
            plugin.distribution, plugin.version = installed.name, installed.version
        self._import(plugin, module)
        return self._finish(plugin)

    def _import(self, plugin: Plugin, module: str, file: Path | None = None) -> None:
        """Import `module`, which should be `file`, into `plugin`; an error becomes one of its failures."""
        for registry in REGISTRIES:
            registry.load_built_ins()
        before = [set(registry.entries) for registry in REGISTRIES]
        try:
            with contextlib.redirect_stdout(sys.stderr):  # stdout is for results: a plugin may print
                origin = importlib.import_module(module).__file__
            if file and origin and Path(origin).resolve() != file:
                reason = f"its module name is taken by {origin}; rename {file.name} or its folder"
                self._fail(plugin, module, reason)
        except (Exception, SystemExit) as error:
            for registry in REGISTRIES:
                for name, entry in list(registry.entries.items()):
                    if entry.build.__module__ == module:
                        del registry.entries[name]
            self._fail(plugin, module, explain_failure(error, plugin))
        for registry, names in zip(REGISTRIES, before, strict=True):
            plugin.registered += [f"{registry.kind} {name}" for name in registry.entries if name not in names]

    def _fail(self, plugin: Plugin, what: str, reason: str) -> None:
        plugin.failures[what] = " ".join(reason.split()).rstrip(".")
        self.skip(f"plugin {what}", plugin.failures[what])

    def _finish(self, plugin: Plugin) -> Plugin:
        if self.notify:
            self.notify(plugin)
        return plugin


def _place_of(module: str) -> Path | None:
    """The file of an imported module, or the folder of a package that has no `__init__.py`."""
    imported = sys.modules.get(module)
    if imported is None:
        return None
    if getattr(imported, "__file__", None):
        return Path(imported.__file__)
    folders = list(getattr(imported, "__path__", ()))
    return Path(folders[0]) if folders else None
