"""Finding and loading plugins: modules outside this package that register backbones and heads.

A plugin is a folder, a single .py file, or an installed package. They are taken from `./seghiero_plugins`, from the
`plugins:` of a config that the user names, from `$SEGHIERO_PLUGINS`, from what is given by name, and from entry points
in the group `seghiero.plugins`; from nowhere else, and never because a checkpoint says so.

A folder's modules are imported under the folder's own name, and the folder that holds it goes to the end of
`sys.path`: there it hides no installed module, and worker processes, which inherit `sys.path`, can import the classes
that they unpickle. A module that can't be imported leaves nothing behind but its reason.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.metadata import Distribution, distribution, entry_points, packages_distributions
from pathlib import Path

from seghiero_core.atomic import file_sha256
from seghiero_core.errors import UsageError
from seghiero_core.registry import BACKBONES, HEADS, NOT_LOADED

FOLDER = "seghiero_plugins"
GROUP = "seghiero.plugins"
VARIABLE = "SEGHIERO_PLUGINS"

LOADED: dict[str, Plugin] = {}
"""The plugins of this process, by the path or module that they were loaded from."""


@dataclass
class Plugin:
    """One loaded source: where it lies, what it registered ("backbone mynet"), and which of its modules failed, why.

    `name` is its importable name; `distribution` and `version` are what pip calls it, None for plain files.
    """

    name: str
    path: Path | None
    distribution: str | None = None
    version: str | None = None
    registered: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    def sources(self) -> dict[str, str]:
        """SHA-256 of each of its modules, by path relative to where it lies."""
        if self.path is None:
            return {}
        if self.path.is_file():
            return {self.path.name: file_sha256(self.path)}
        return {str(file.relative_to(self.path)): file_sha256(file) for file in module_files(self.path)}


_enabled = True
_notify: Callable[[Plugin], None] | None = None


def configure_plugins(*, enabled: bool = True, notify: Callable[[Plugin], None] | None = None) -> None:
    """Turn loading on or off for this process, and have `notify` told of each plugin once it is loaded."""
    global _enabled, _notify
    _enabled, _notify = enabled, notify
    NOT_LOADED.pop("any plugin", None)
    if not enabled:
        NOT_LOADED["any plugin"] = "they are turned off by --no-plugins"


def load_found_plugins(folder: Path | str = "", named: Iterable[str] = ()) -> list[Plugin]:
    """Load `seghiero_plugins` in `folder`, then the `named` ones, those of $SEGHIERO_PLUGINS, and entry points.

    Raises UsageError for one of `named` that isn't there; what is missing elsewhere is recorded as not loaded.
    """
    if not _enabled:
        return []
    here = Path(folder).resolve() / FOLDER
    plugins = [_load_path(here)] if here.is_dir() else []
    plugins += load_plugins(named, base=folder)
    for text in filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)):
        try:
            plugins += load_plugins([text], base=folder)
        except UsageError as error:
            plugin = Plugin(text, None)
            _failed(plugin, f"of ${VARIABLE}", str(error))
            plugins.append(_told(plugin))
    return plugins + [_load_installed(point.module, point.dist) for point in entry_points(group=GROUP)]


def load_plugins(named: Iterable[str | Path], *, base: Path | str = "") -> list[Plugin]:
    """Load each of `named`: a folder or .py file (relative to `base`), or else an installed package or module.

    Raises UsageError for one that is neither. What fails inside a plugin is in its `failures`, and in the message of
    whoever asks for a component that is missing for it.
    """
    found = [(text, resolve_plugin(text, base)) for text in named] if _enabled else []
    return [_load_path(where) if isinstance(where, Path) else _load_installed(where) for _, where in found]


def resolve_plugin(text: str | Path, base: Path | str = "") -> Path | str:
    """The absolute path of the folder or file that `text` means, or the name of the installed module. UsageError."""
    path = (Path(base) / text).resolve()
    if path.is_dir() or path.suffix == ".py" and path.is_file():
        return path
    names = str(text).split(".")
    if all(name.isidentifier() for name in names) and _is_importable(names[0]):
        return str(text)
    raise UsageError(f"plugin '{text}': there is no such folder or .py file ({path}) and no installed module so named.")


def module_files(folder: Path) -> list[Path]:
    """The .py files below `folder` that count: all but tests and what lies in hidden or cache folders."""
    return [file for file in sorted(folder.rglob("*.py")) if not _is_test(file.relative_to(folder))]


def plugin_of(module: str) -> Plugin | None:
    """The loaded plugin that `module` belongs to."""
    file = Path(getattr(sys.modules.get(module), "__file__", None) or "")
    return next((p for p in LOADED.values() if p.path and (file == p.path or p.path in file.parents)), None)


def _is_importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # __main__ and the like
        return False


def _is_test(file: Path) -> bool:
    folders = file.parent.parts
    hidden = any(part.startswith((".", "__")) or part in ("tests", "test") for part in folders)
    return hidden or file.stem == "conftest" or file.stem.startswith("test_") or file.stem.endswith("_test")


def _load_path(path: Path) -> Plugin:
    plugin = LOADED.get(str(path))
    if plugin:
        return plugin
    plugin = LOADED[str(path)] = Plugin(path.stem if path.is_file() else path.name, path)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    importlib.invalidate_caches()
    for file in [path] if path.is_file() else module_files(path):
        parts = file.relative_to(path.parent).with_suffix("").parts
        _import(plugin, ".".join(parts[:-1] if parts[-1] == "__init__" else parts), file)
    return _told(plugin)


def _load_installed(module: str, installed: Distribution | None = None) -> Plugin:
    if module in LOADED:
        return LOADED[module]
    top = module.partition(".")[0]
    names = packages_distributions().get(top) if installed is None else None
    if names:
        installed = distribution(names[0])
    plugin = LOADED[module] = Plugin(top, _location(top))
    if installed is not None:
        plugin.distribution, plugin.version = installed.name, installed.version
    _import(plugin, module)
    return _told(plugin)


def _told(plugin: Plugin) -> Plugin:
    if _notify:
        _notify(plugin)
    return plugin


def _location(module: str) -> Path | None:
    """Folder of a top-level package or file of a top-level module, found without running it."""
    spec = importlib.util.find_spec(module)
    if spec is None:
        return None
    folders = list(spec.submodule_search_locations or ())
    return Path(folders[0]) if folders else Path(spec.origin) if spec.origin else None


def _import(plugin: Plugin, module: str, file: Path | None = None) -> None:
    """Import `module`, which should be `file`, into `plugin`; whatever it raises becomes one of its failures."""
    registries = (BACKBONES, HEADS)
    for registry in registries:
        registry.load_built_ins()
    before = [set(registry.entries) for registry in registries]
    try:
        with contextlib.redirect_stdout(sys.stderr):  # a print in a plugin is no result of ours
            origin = importlib.import_module(module).__file__
        if file and origin and Path(origin).resolve() != file:
            _failed(plugin, module, f"the name is taken by {origin}; rename {file.name}, or the folder that it is in")
    except (Exception, SystemExit) as error:
        for registry in registries:
            for name in [name for name, entry in registry.entries.items() if entry.build.__module__ == module]:
                del registry.entries[name]
        _failed(plugin, module, _reason(error, plugin.path))
    for registry, names in zip(registries, before, strict=True):
        plugin.registered += [f"{registry.kind} {name}" for name in registry.entries if name not in names]


def _failed(plugin: Plugin, what: str, reason: str) -> None:
    plugin.failures[what] = NOT_LOADED[f"plugin {what}"] = " ".join(reason.split()).rstrip(".")


def _reason(error: BaseException, path: Path | None) -> str:
    """What went wrong, and on which line of the plugin at `path`."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: syntax error, {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if path and (path == Path(f.filename) or path in Path(f.filename).parents)]
    where = f"{own[-1].filename}, line {own[-1].lineno}: " if own else ""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"{where}{error}; install what provides it (pip install {error.name.partition('.')[0]})"
    kind = "" if isinstance(error, UsageError) else f"{type(error).__name__}: "
    return f"{where}{kind}{error}"
