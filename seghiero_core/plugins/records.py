"""What a checkpoint notes of the plugins that its model came from, and how that is compared on loading it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from seghiero_core.plugins.loading import LOADED, Plugin, plugin_of
from seghiero_core.registry import BACKBONES, HEADS, NOT_LOADED


def plugin_records(backbone: str, head: str) -> list[dict[str, Any]]:
    """What a checkpoint notes of the components that don't come with this package, one record per plugin.

    A record has `name`, `distribution`, `version`, `components` ("backbone mynet") and `sources`, as in `Plugin`.
    """
    records: dict[str, dict[str, Any]] = {}
    for registry, name in ((BACKBONES, backbone), (HEADS, head)):
        module = registry.get(name).build.__module__
        if module.startswith(f"{registry.package}."):
            continue
        plugin = plugin_of(module) or Plugin(module, None)
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
    """What to install or enable so that all components of `records` are there; empty if they are."""
    if not records:
        return ""
    known = {f"{registry.kind} {name}" for registry in (BACKBONES, HEADS) for name in registry.names()}
    lines = []
    for record in records:
        if missing := [component for component in record["components"] if component not in known]:
            if record["distribution"]:
                advice = f"pip install {record['distribution']}=={record['version']}"
            else:
                files = ", ".join(record["sources"]) or "its module"
                advice = f"run where its folder {record['name']} is, or give --plugin PATH to it; it held {files}"
            names = " and ".join(missing)
            lines.append(f"{names} came from the plugin '{record['name']}', which isn't loaded: {advice}")
    lines += [f"not loaded: {plugin} ({reason})" for plugin, reason in NOT_LOADED.items()] if lines else []
    return "\n".join(f"{line}." for line in lines)


def changed_plugins(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """One line for each loaded plugin whose sources are no longer those of its record."""
    lines = []
    for record in records:
        for plugin in LOADED.values():
            now = plugin.sources() if plugin.name == record["name"] else record["sources"]
            before = record["sources"]
            if changed := sorted(file for file in {*now, *before} if now.get(file) != before.get(file)):
                lines.append(f"plugin '{plugin.name}' has changed since the training: {', '.join(changed)}.")
    return lines
