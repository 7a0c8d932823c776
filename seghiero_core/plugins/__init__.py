"""Your own backbones and heads: finding them and loading them."""

from seghiero_core.plugins.loader import PluginLoader
from seghiero_core.plugins.loading import (
    configure_plugins,
    current_loader,
    load_found_plugins,
    load_plugins,
    load_plugins_on_demand,
    plugin_of,
    use_loader,
)
from seghiero_core.plugins.sources import FOLDER, GROUP, VARIABLE, Plugin, resolve_plugin

__all__ = [
    "FOLDER",
    "GROUP",
    "VARIABLE",
    "Plugin",
    "PluginLoader",
    "configure_plugins",
    "current_loader",
    "load_found_plugins",
    "load_plugins",
    "load_plugins_on_demand",
    "plugin_of",
    "resolve_plugin",
    "use_loader",
]
