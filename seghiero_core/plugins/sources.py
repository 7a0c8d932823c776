"""Where a plugin lies: resolving its name, listing its modules, and saying why one of them failed to import."""

from __future__ import annotations

import importlib.util
import traceback
from dataclasses import dataclass, field
from pathlib import Path

from seghiero_core.atomic import file_sha256
from seghiero_core.errors import UsageError

FOLDER = "seghiero_plugins"
"""The folder in the current directory that is always searched."""

GROUP = "seghiero.plugins"
"""The entry point group of installed plugins."""

VARIABLE = "SEGHIERO_PLUGINS"
"""The environment variable that lists plugins, separated as in PATH."""


@dataclass
class Plugin:
    """One loaded plugin.

    Attributes:
        name: Its importable top-level name.
        path: Its folder or .py file; None if it has none, such as a plugin that wasn't found.
        distribution, version: What pip calls it; None for plain files.
        registered: The components it registered, such as "backbone mynet".
        failures: Why a module of it was not loaded, by module name.
    """

    name: str
    path: Path | None
    distribution: str | None = None
    version: str | None = None
    registered: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    def sources(self) -> dict[str, str]:
        """Hash the plugin's modules.

        Returns:
            The SHA-256 of each module, by its path relative to the plugin's folder.
        """
        if self.path is None:
            return {}
        if self.path.is_file():
            return {self.path.name: file_sha256(self.path)}
        return {str(file.relative_to(self.path)): file_sha256(file) for file in module_files(self.path)}

    def contains(self, file: Path) -> bool:
        """Tell whether a file or folder belongs to the plugin.

        Args:
            file: An absolute path.

        Returns:
            True if `file` is the plugin's own path or lies below it.
        """
        return self.path is not None and (file == self.path or self.path in file.parents)


def resolve_plugin(text: str | Path, base: Path | str = "") -> Path | str:
    """Find what a plugin's name refers to, without importing it.

    Args:
        text: A folder or .py file, or the name of an installed package or module.
        base: The folder that a relative path starts from. Default: the current folder.

    Returns:
        The absolute path of the folder or file, or `text` if it names an installed module.

    Raises:
        UsageError: When `text` is neither.
    """
    path = (Path(base) / text).resolve()
    if path.is_dir() or (path.suffix == ".py" and path.is_file()):
        return path
    names = str(text).split(".")
    if all(name.isidentifier() for name in names) and _is_importable(names[0]):
        return str(text)
    raise UsageError(f"unknown plugin '{text}': found neither the folder or .py file {path} nor an installed module.")


def module_files(folder: Path) -> list[Path]:
    """List the modules of a plugin folder.

    Args:
        folder: The plugin's folder.

    Returns:
        The .py files below it, sorted, without tests and without files in hidden or cache folders.
    """
    return [file for file in sorted(folder.rglob("*.py")) if not _is_test(file.relative_to(folder))]


def module_location(module: str) -> Path | None:
    """Locate a top-level package or module without importing it.

    Args:
        module: A name without dots.

    Returns:
        The folder of a package, the file of a module, or None if there is neither.
    """
    spec = importlib.util.find_spec(module)
    if spec is None:
        return None
    folders = list(spec.submodule_search_locations or ())
    if folders:
        return Path(folders[0])
    return Path(spec.origin) if spec.origin else None


def explain_failure(error: BaseException, plugin: Plugin) -> str:
    """Describe an error raised while a plugin was imported.

    Args:
        error: What the import raised.
        plugin: The plugin it belongs to.

    Returns:
        One sentence with the plugin's file and line, what went wrong and, for a missing module, how to install it.
    """
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: syntax error, {error.msg}"
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if plugin.contains(Path(frame.filename))]
    where = f"{own[-1].filename}, line {own[-1].lineno}: " if own else ""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"{where}{error}; install the package that provides it (pip install {error.name.partition('.')[0]})"
    kind = "" if isinstance(error, UsageError) else f"{type(error).__name__}: "
    return f"{where}{kind}{error}"


def _is_importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # __main__, for one, has no spec
        return False


def _is_test(file: Path) -> bool:
    folders = file.parent.parts
    skipped = any(part.startswith((".", "__")) or part in ("tests", "test") for part in folders)
    return skipped or file.stem == "conftest" or file.stem.startswith("test_") or file.stem.endswith("_test")
