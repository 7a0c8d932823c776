"""Components of your own: finding and loading them."""

from seghiero_core.plugins.loading import (
    FOLDER,
    GROUP,
    VARIABLE,
    Plugin,
    configure_plugins,
    load_found_plugins,
    load_plugins,
    plugin_of,
    resolve_plugin,
)

__all__ = [
    "FOLDER",
    "GROUP",
    "VARIABLE",
    "Plugin",
    "configure_plugins",
    "load_found_plugins",
    "load_plugins",
    "plugin_of",
    "resolve_plugin",
]
