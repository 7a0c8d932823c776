"""Finding what is wrong with a config. The checks return their faults, so that all can be reported together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from seghiero_core.config.schema import ClassesConfig, Config
from seghiero_core.config.suggestions import unknown_key
from seghiero_core.errors import UsageError, nearest
from seghiero_core.hierarchy.presets import preset_names
from seghiero_core.hierarchy.section import ClassesError
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.hierarchy.values import short_repr
from seghiero_core.hierarchy.yaml_reader import Key, dotted
from seghiero_core.losses.catalog import check_loss_section, loss_hint
from seghiero_core.registry import BACKBONES, HEADS, BackboneEntry, HeadEntry, Registry

Fault = tuple[Key, str]
"""The key that is wrong, to find its line, and the message, which begins with the key."""

_EXPECTED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "list_type": "a list",
    "model_type": "a mapping",
    "path_type": "a path",
    "string_too_short": "a string that is not empty",
    "string_type": "a string",
    "tuple_type": "a list",
}
"""What was expected, by the type of pydantic's error."""


def validate_schema(data: Mapping[str, Any]) -> tuple[Config | None, list[Fault]]:
    """Validate the sections, keys and values of a config, except for the options of components and losses.

    Args:
        data: The config as plain values, its preset expanded.

    Returns:
        The config, None where it has faults, and the faults.
    """
    try:
        return Config.model_validate(data), []
    except ValidationError as error:
        return None, [_schema_fault(details) for details in error.errors(include_url=False)]


def build_hierarchy(config: Config | None, classes: Any) -> tuple[Hierarchy | None, list[Fault]]:
    """Build the class tree, if need be from a config that has faults in other sections.

    Args:
        config: The config, None where it has faults.
        classes: Its `classes` section as plain values.

    Returns:
        The tree, None where `classes` has faults, and those that `validate_schema` has not found.
    """
    try:
        if config is not None:
            return config.hierarchy, []
        return Hierarchy.from_config(ClassesConfig.model_validate(classes)), []
    except ValidationError:
        return None, []
    except ClassesError as error:
        return None, [_fault(key, text) for key, text in error.faults]


def component_faults(data: Mapping[str, Any]) -> Iterator[Fault]:
    """Check the types and options of the `backbone` and `head` sections.

    Args:
        data: The config as plain values.

    Yields:
        The faults.
    """
    for section, registry in (("backbone", BACKBONES), ("head", HEADS)):
        options = data.get(section, {})
        if isinstance(options, Mapping):
            yield from _component_faults(section, registry, options)


def loss_faults(loss: Any, hierarchy: Hierarchy) -> list[Fault]:
    """Check the `loss` section.

    Args:
        loss: The section as plain values.
        hierarchy: The class tree.

    Returns:
        The faults.
    """
    if not isinstance(loss, Mapping):
        return []  # `validate_schema` reports it
    return [_fault_from_line(line) for line in check_loss_section(loss, hierarchy)]


def monitor_faults(config: Config, hierarchy: Hierarchy) -> list[Fault]:
    """Check that `training.monitor` is a level of the tree, or the mean over all.

    Args:
        config: A valid config.
        hierarchy: Its class tree.

    Returns:
        The faults.
    """
    monitor, known = config.training.monitor, ["mean_miou", *(level.name for level in hierarchy.levels)]
    if monitor in known:
        return []
    hint = f"{nearest(monitor, known)} Known: {', '.join(known)}."
    return [_fault(("training", "monitor"), f"unknown metric '{monitor}'.{hint}")]


def init_from_faults(config: Config) -> list[Fault]:
    """Check that only one of `init_from` and `backbone.pretrained` loads weights.

    Args:
        config: A valid config.

    Returns:
        The faults.
    """
    if config.init_from and config.backbone.pretrained:
        text = "loads the backbone's weights, too; set backbone.pretrained to false, or remove init_from."
        return [_fault(("init_from",), text)]
    return []


def _fault(key: Key, text: str) -> Fault:
    return key, f"{dotted(key)}: {text}"


def _fault_from_line(line: str) -> Fault:
    """The fault that a message describes; the message begins with its key, such as "classes.tree: ..."."""
    return tuple(line.partition(":")[0].split(".")), line


def _schema_fault(error: Any) -> Fault:
    """Turn pydantic's description of an error into a fault."""
    key = error["loc"]
    if error["type"] == "missing":
        return _fault(key, "this key is required.")
    if error["type"] == "extra_forbidden":
        return _fault(key, f"unknown key.{unknown_key(key, _known_keys(key[:-1]))}")
    inside = getattr(error.get("ctx", {}).get("error"), "key", ())  # where a validator found it
    if error["type"] == "invalid_key":  # not a string
        key = (*key[:-1], error["input"])
        return _fault(key, f"unknown key.{unknown_key(key, _known_keys(key[:-1]))}")
    hint = ""
    if len(key) == 1 and error["type"] in ("dict_type", "model_type"):
        hint = _section_hint(key[0], error["input"])
    return _fault((*key, *inside), _expectation(error) + hint)


def _section_hint(section: Any, value: Any) -> str:
    """What to write in place of a value that isn't a mapping."""
    if value is None:
        return " Add keys below it."
    if section == "loss":
        return loss_hint(*map(str, value if isinstance(value, list) else [value]))
    if not isinstance(value, str):
        return ""
    if section in ("backbone", "head"):
        return _component_hint(section, BACKBONES if section == "backbone" else HEADS, value)
    if section == "classes" and value in preset_names():
        return f" Write `classes: {{preset: {value}}}`."
    return " Write 'key: value', with a space after the colon." if ":" in value or " " in value else ""


def _component_hint(section: str, registry: Registry, word: str) -> str:
    """How a component is written; `word` may also be its variant."""
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


def _known_keys(section: Key) -> list[str]:
    """The keys of a section of the schema; the empty key stands for the whole config."""
    model: type[BaseModel] = Config
    for name in section:
        annotation = model.model_fields[name].annotation
        alternatives = getattr(annotation, "__args__", (annotation,))  # of `SplitConfig | None`
        model = next(each for each in alternatives if issubclass(each, BaseModel))
    return list(model.model_fields)


def _expectation(error: Any) -> str:
    """Say what was expected and what was found."""
    kind, context = error["type"], error.get("ctx", {})
    if kind == "value_error":  # raised by a validator, which says both
        return f"{context['error']}."
    if kind == "literal_error":
        expected = context["expected"]
    elif kind == "greater_than":
        expected = _at_least_above(context["gt"])
    elif kind == "greater_than_equal":
        expected = _at_least(context["ge"])
    elif kind == "less_than":
        expected = f"a number below {context['lt']:g}"
    elif kind == "less_than_equal":
        expected = f"a number of at most {context['le']:.10g}"
    elif kind == "list_type" and isinstance(error["input"], str):
        is_one = len(error["input"].split()) == 1 or "," in error["input"]
        advice = f"write [{error['input']}]" if is_one else "put it in brackets, with commas between the items"
        return f"expected a list, found {short_repr(error['input'])}; {advice}."
    elif kind in _EXPECTED:
        expected = _EXPECTED[kind]
    else:  # a rarer kind, from the annotation of a component's option
        return f"{error['msg'].replace('Input should be', 'expected')}, found {short_repr(error['input'])}."
    return f"expected {expected}, found {short_repr(error['input'])}."


def _at_least_above(limit: float) -> str:
    return f"a whole number from {limit + 1}" if isinstance(limit, int) else f"a number above {limit:g}"


def _at_least(limit: float) -> str:
    return f"a whole number from {limit}" if isinstance(limit, int) else f"a number of at least {limit:g}"


def _component_faults(section: str, registry: Registry, options: Mapping[str, Any]) -> Iterator[Fault]:
    name = options.get("type", Config.model_fields[section].default.type)
    try:
        entry: BackboneEntry | HeadEntry = registry.get(str(name))
    except UsageError as error:
        hint = _variant_hint(section, registry, str(name))
        yield _fault((section, "type"), f"unknown {section} '{name}'.{hint}" if hint else str(error))
        return
    if isinstance(entry, BackboneEntry):
        try:
            entry.check_variant(options.get(entry.selector, entry.default))
        except UsageError as error:
            yield _fault((section, entry.selector), str(error))
    known = {*type(Config.model_fields[section].default).model_fields, *_own_keys(entry)}
    for key, value in options.items():
        if key not in known:
            yield _fault((section, key), _unknown_option(section, registry, str(name), key, known))
        elif key in entry.options:
            try:
                TypeAdapter(entry.options[key].annotation).validate_python(value)
            except ValidationError as error:
                yield _fault((section, key), _expectation(error.errors()[0]))


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
