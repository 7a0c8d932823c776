"""What a checkpoint records about the plugins its model came from, and the comparison when it is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from seghiero_core.plugins.loader import REGISTRIES
from seghiero_core.plugins.loading import current_loader
from seghiero_core.plugins.sources import Plugin
from seghiero_core.registry import BACKBONES, HEADS


def plugin_records(backbone: str, head: str) -> list[dict[str, Any]]:
    """Describe the plugins that a model's components came from.

    Args:
        backbone: The type of its backbone.
        head: The type of its head.

    Returns:
        One record per plugin, none for built-in components. A record has `name`, `distribution`, `version`,
        `components` ("backbone mynet") and `sources`, as in `Plugin`.
    """
    records: dict[str, dict[str, Any]] = {}
    for registry, name in ((BACKBONES, backbone), (HEADS, head)):
        module = registry.get(name).build.__module__
        if module.startswith(f"{registry.package}."):
            continue
        plugin = current_loader().plugin_of(module) or Plugin(module, None)
        record = {
            "name": plugin.name,
            "distribution": plugin.distribution,
            "version": plugin.version,
            "components": [],
            "sources": plugin.sources(),
        }
        records.setdefault(plugin.name, record)["components"].append(f"{registry.kind} {name}")
    return list(records.values())


def missing_plugins(records: Sequence[Mapping[str, Any]]) -> str:
    """Say how to get the components that a checkpoint needs and that aren't registered.

    Args:
        records: What `plugin_records` returned when the checkpoint was written.

    Returns:
        One line per plugin to install or to enable; empty if nothing is missing.
    """
    if not records:
        return ""
    known = {f"{registry.kind} {name}" for registry in REGISTRIES for name in registry.names()}
    lines = []
    for record in records:
        missing = [component for component in record["components"] if component not in known]
        if not missing:
            continue
        if record["distribution"]:
            advice = f"pip install {record['distribution']}=={record['version']}"
        else:
            files = ", ".join(record["sources"]) or "its module"
            advice = f"run in the folder that contains {record['name']}, or pass --plugin PATH; its files: {files}"
        lines.append(f"{' and '.join(missing)} came from the plugin '{record['name']}', which isn't loaded: {advice}")
    if lines:
        lines += [f"not loaded: {what} ({reason})" for what, reason in current_loader().not_loaded.items()]
    return "\n".join(f"{line}." for line in lines)


def changed_plugins(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Compare the sources of loaded plugins with what a checkpoint recorded.

    Args:
        records: What `plugin_records` returned when the checkpoint was written.

    Returns:
        One sentence for each loaded plugin whose files are no longer the same.
    """
    lines = []
    for record in records:
        before = record["sources"]
        for plugin in current_loader().loaded.values():
            if plugin.name != record["name"]:
                continue
            now = plugin.sources()
            changed = sorted(file for file in {*now, *before} if now.get(file) != before.get(file))
            if changed:
                lines.append(f"the plugin '{plugin.name}' has changed since training: {', '.join(changed)}.")
    return lines
