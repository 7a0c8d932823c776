"""Render the files of a scaffolded component from templates, formatted as `ruff format` does.

A component's template has sections, each below a line `%% name`. They are put into one module (a plugin or a package)
or two (a built-in, whose registration must not import torch).
"""

from __future__ import annotations

import json
import keyword
from collections.abc import Mapping, Sequence
from string import Template
from typing import Any

from seghiero_core.errors import UsageError
from seghiero_core.scaffold.source_model import SourceModel
from seghiero_core.scaffold.templates import read_template

LINE_LENGTH = 120

_IMPORTED_CLASSES = ("Any", "AutoBackbone", "AutoConfig")  # names that generated modules import


def class_name(kind: str, name: str) -> str:
    """Derive the class name of a component from its name.

    Args:
        kind: "backbone" or "head".
        name: The component's name.

    Returns:
        "MyNet" for a backbone "my_net", "MyNetHead" for a head of that name.
    """
    words = "".join(word[:1].upper() + word[1:] for word in name.split("_"))
    if kind == "head":
        return words if words.lower().endswith("head") else f"{words}Head"
    return f"{words}Net" if words in _IMPORTED_CLASSES or keyword.iskeyword(words) else words


def plain_values(variants: Sequence[str]) -> dict[str, str]:
    """Return the template values of the small backbone.

    Args:
        variants: Names of its variants, each wider than the one before; empty for a single size.

    Returns:
        The value of each placeholder.
    """
    rows = [tuple((32 + 16 * i) * 2**stage for stage in range(4)) for i in range(max(1, len(variants)))]
    return _channel_values(rows, variants)


def source_model_values(source: str, models: Sequence[SourceModel], variants: Sequence[str]) -> dict[str, str]:
    """Return the template values of a backbone that wraps published models.

    Args:
        source: What `--from` says, for messages.
        models: The wrapped model, or that of each variant.
        variants: Names of the variants; empty for a single model.

    Returns:
        The value of each placeholder.

    Raises:
        UsageError: If the models can't share one class.
    """
    first = models[0]
    if any((model.stages, model.unused) != (first.stages, first.unused) for model in models):
        raise UsageError(
            f"--from {source}: the stages of these models differ; scaffold each model under a name of its own."
        )
    title = first.title
    if variants:
        names = [model.title.partition(" from ")[0] for model in models]
        title = f"{names[0]} to {names[-1]} from {first.title.rpartition(' ')[2]}"
    table = "MODEL" if first.library == "timm" else "CONFIG"
    if variants:
        table += "S"
    return _channel_values([model.channels for model in models], variants) | {
        "source_title": title,
        "model_table": _table(table, [model.model for model in models], variants),
        "model_of": f"{table}[variant]" if variants else table,
        "stages": python_literal(first.stages if first.library == "timm" else list(first.stages)),
        "unused": python_literal(first.unused) if first.unused else "",
        "weights_options": _weights_options(models, variants),
    }


def _weights_options(models: Sequence[SourceModel], variants: Sequence[str]) -> str:
    """Return the lines of the register decorator that name published weights and their statistics."""
    lines = ""
    if all(model.tag for model in models):
        tags = {variant: (model.tag,) for variant, model in zip(variants or ["default"], models, strict=True)}
        lines += f"    weights={python_literal(tags, 4, len('weights=,'))},\n"
    not_default = {model.tag: model.statistics for model in models if model.statistics != SourceModel.statistics}
    if not_default and len(models) == 1:
        lines += f"    statistics={python_literal(models[0].statistics, 4, len('statistics=,'))},\n"
    elif not_default:
        lines += f"    tag_statistics={python_literal(not_default, 4, len('tag_statistics=,'))},\n"
    return lines


def component_text(template: str, values: Mapping[str, str]) -> str:
    """Render a component as one module that imports torch at its top.

    Args:
        template: Name of its template.
        values: The value of each placeholder.

    Returns:
        The text of the module.
    """
    texts = _sections(template, {**values, "module_type": "nn.Module", "lazy_import": ""})
    own = [texts.get("own_imports"), f"from seghiero_core.registry import register_{values['kind']}"]
    tables = "\n".join(texts[key] for key in ("table", "constants") if key in texts)
    return read_template("component").substitute(
        title=texts["title"],
        advice=texts["advice"],
        imports=texts["imports"],
        own_imports="\n".join(filter(None, own)),
        body=_body(tables, texts["network"], texts["registration"]),
    )


def builtin_texts(template: str, values: Mapping[str, str]) -> tuple[str, str]:
    """Render a component as two modules: a registration without torch, and the network that it imports when called.

    Args:
        template: Name of its template.
        values: The value of each placeholder.

    Returns:
        The texts of the registration and of the network.
    """
    kind, name = values["kind"], values["name"]
    lazy_import = f"from seghiero_core.{kind}s.networks.{name} import {values['class_name']}\n\n    "
    texts = _sections(template, {**values, "module_type": "Any", "lazy_import": lazy_import})
    collections = "from collections.abc import Sequence\n" if kind == "head" else ""
    registration = read_template("builtin_registration").substitute(
        title=texts["title"],
        imports=f"{collections}from typing import Any",
        own_imports=f"from seghiero_core.registry import register_{kind}",
        body=_body(texts.get("table", ""), texts["registration"]),
    )
    network = read_template("builtin_network").substitute(
        title=texts["title"],
        imports="\n\n".join(texts[key] for key in ("imports", "own_imports") if key in texts),
        body=_body(texts.get("constants", ""), texts["network"]),
    )
    return registration, network


def test_text(place: str, values: Mapping[str, str], variants: Sequence[str]) -> str:
    """Render the test of a component, which calls the conformance suite for each variant.

    Args:
        place: "plugin", "package" or "builtin".
        values: The value of each placeholder.
        variants: Names of the variants; empty for a single size.

    Returns:
        The text of the test module.
    """
    imports = []
    check = f"from seghiero_core.testing import check_{values['kind']}"
    load_plugins = f"from seghiero_core.plugins import load_plugins\n{check}"
    pytest = ["import pytest"] if variants else []
    if place == "plugin":
        imports = ["from pathlib import Path", *pytest, load_plugins]
        load = "\nload_plugins([Path(__file__).parents[1]])\n\n"
    elif place == "package":
        imports = [*pytest, load_plugins]
        load = f'\nload_plugins(["{values["package"]}.{values["name"]}"])\n\n'
    else:
        imports = [*pytest, check]
        load = "\n"
    return read_template("test_variants" if variants else "test_component").substitute(
        values,
        imports="\n\n".join(imports),
        load=load,
        variants=python_literal(list(variants), 0, len('@pytest.mark.parametrize("variant", )')),
    )


def python_literal(value: Any, indent: int = 0, beside: int = 0) -> str:
    """Write a value as Python source, on one line if it fits and else one entry per line.

    Args:
        value: Built from dicts, lists, tuples, strings, numbers, booleans and None.
        indent: Indentation of the statement that it is part of, in spaces.
        beside: Number of other characters on its first line.

    Returns:
        The source.
    """
    inline = _inline(value)
    if indent + beside + len(inline) <= LINE_LENGTH or not isinstance(value, dict | list | tuple):
        return inline
    return _exploded(value, indent)


def _exploded(value: dict | list | tuple, indent: int) -> str:
    """Write a collection as Python source with one entry per line."""
    if isinstance(value, dict):
        entries = [(f"{_inline(key)}: ", item) for key, item in value.items()]
    else:
        entries = [("", item) for item in value]
    opening, closing = {dict: "{}", list: "[]", tuple: "()"}[type(value)]
    lines = [opening]
    for label, item in entries:
        lines.append(f"{' ' * (indent + 4)}{label}{python_literal(item, indent + 4, len(label) + 1)},")
    return "\n".join([*lines, f"{' ' * indent}{closing}"])


def _inline(value: Any) -> str:
    """Write a value as Python source on one line, with double quotes."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_inline(k)}: {_inline(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(_inline, value)) + (",)" if len(value) == 1 else ")")
    return repr(value)


def _channel_values(rows: Sequence[tuple[int, ...]], variants: Sequence[str]) -> dict[str, str]:
    return {
        "channel_table": _table("CHANNELS", rows, variants),
        "channels_option": "variants" if variants else "channels",
        "channels_of": "CHANNELS[variant]" if variants else "CHANNELS",
    }


def _table(name: str, rows: Sequence[Any], variants: Sequence[str]) -> str:
    """Return `NAME = row`, or with variants a table with one row per line."""
    if variants:
        return f"{name} = {_exploded(dict(zip(variants, rows, strict=True)), 0)}"
    return f"{name} = {python_literal(rows[0], 0, len(name) + 3)}"


def _sections(template: str, values: Mapping[str, str]) -> dict[str, str]:
    """Split a template into its sections, by name, and fill them in."""
    raw = read_template(template).template
    texts = {}
    for part in raw.split("%% ")[1:]:
        key, _, text = part.partition("\n")
        texts[key] = Template(text.rstrip("\n"))
    values = {**values, "drop_unused": ""}
    if values.get("unused"):
        values["drop_unused"] = texts["drop_unused"].substitute(values) + "\n"
    return {key: text.substitute(values) for key, text in texts.items() if key != "drop_unused"}


def _body(constants: str, *definitions: str) -> str:
    """Return what follows the imports: constants after one blank line, definitions after two."""
    text = "\n\n\n".join(definitions)
    if constants:
        return f"\n{constants}\n\n\n{text}"
    return f"\n\n{text}"
