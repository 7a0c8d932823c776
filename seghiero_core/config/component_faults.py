"""What is wrong with the `backbone` and `head` sections: their types, and the options that a type has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from seghiero_core.config.messages import Fault, expectation, fault_at
from seghiero_core.config.schema import Config
from seghiero_core.config.suggestions import unknown_key
from seghiero_core.errors import UsageError
from seghiero_core.registry import BACKBONES, HEADS, BackboneEntry, HeadEntry, Registry

COMPONENT_REGISTRIES: dict[str, Registry] = {"backbone": BACKBONES, "head": HEADS}
"""The components that each section may name."""


def component_faults(data: Mapping[str, Any]) -> Iterator[Fault]:
    """Check the types and options of the `backbone` and `head` sections.

    Args:
        data: The config as plain values.

    Yields:
        The faults.
    """
    for section, registry in COMPONENT_REGISTRIES.items():
        options = data.get(section, {})
        if isinstance(options, Mapping):
            yield from _component_faults(section, registry, options)


def component_hint(section: str, word: str) -> str:
    """Say how a component is written.

    Args:
        section: "backbone" or "head".
        word: What stands in place of the section: a name, a variant, or an unknown word.

    Returns:
        A sentence with a leading space.
    """
    registry = COMPONENT_REGISTRIES[section]
    if word in registry.names():
        return f" Write `{section}: {{type: {word}}}`."
    names = ", ".join(registry.names())
    return _variant_hint(section, registry, word) or f" Write `{section}: {{type: NAME}}` with one of {names}."


def _variant_hint(section: str, registry: Registry, word: str) -> str:
    """How a variant such as resnet50, resnet-50 or mit-b0 is written; empty for other words."""

    def plain(text: str) -> str:
        return text.lower().replace("-", "").replace("_", "")

    for name in registry.names():
        entry = registry.get(name)
        for variant in getattr(entry, "variants", ()):
            if plain(word) in (plain(str(variant)), plain(f"{name}{variant}")):
                return f" Write `{section}: {{type: {name}, {entry.selector}: {variant}}}`."
    return ""


def _component_faults(section: str, registry: Registry, options: Mapping[str, Any]) -> Iterator[Fault]:
    name = options.get("type", Config.model_fields[section].default.type)
    try:
        entry: BackboneEntry | HeadEntry = registry.get(str(name))
    except UsageError as error:
        hint = _variant_hint(section, registry, str(name))
        yield fault_at((section, "type"), f"unknown {section} '{name}'.{hint}" if hint else str(error))
        return
    if isinstance(entry, BackboneEntry):
        try:
            entry.check_variant(options.get(entry.selector, entry.default))
        except UsageError as error:
            yield fault_at((section, entry.selector), str(error))
    known = {*type(Config.model_fields[section].default).model_fields, *_own_keys(entry)}
    for key, value in options.items():
        if key not in known:
            yield fault_at((section, key), _unknown_option(section, registry, str(name), key, known))
        elif key in entry.options:
            try:
                TypeAdapter(entry.options[key].annotation).validate_python(value)
            except ValidationError as error:
                yield fault_at((section, key), expectation(error.errors()[0]))


def _own_keys(entry: BackboneEntry | HeadEntry) -> set[str]:
    """The keys that this component has, beyond those that every component of its kind has."""
    if isinstance(entry, BackboneEntry):
        return {entry.selector, *entry.options}
    return set(entry.options)


def _unknown_option(section: str, registry: Registry, name: str, key: str, known: set[str]) -> str:
    others = [other for other in registry.names() if key in _own_keys(registry.get(other))]
    if others:
        whole = f"{section}={{type: {name}}}"
        hint = f" It belongs to {', '.join(others)}: remove it, or replace the whole section ({whole})."
    else:
        hint = unknown_key((section, key), sorted(known))
    return f"unknown key for {name}.{hint}"
