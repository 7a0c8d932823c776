"""The text of a scaffolded component: sections of its template, put into one file or two, formatted as ruff does."""

from __future__ import annotations

import json
import keyword
from collections.abc import Sequence
from string import Template
from typing import Any

from seghiero_core.errors import UsageError
from seghiero_core.scaffold.source_model import Published
from seghiero_core.scaffold.templates import read_template

LINE_LENGTH = 120

_IMPORTED = ("Any", "AutoBackbone", "AutoConfig")  # classes that the generated modules use


def class_name(kind: str, name: str) -> str:
    """The class of the component `name`: my_net gives MyNet, and of a head, MyNetHead."""
    words = "".join(word[:1].upper() + word[1:] for word in name.split("_"))
    if kind == "head":
        return words if words.lower().endswith("head") else f"{words}Head"
    return f"{words}Net" if words in _IMPORTED or keyword.iskeyword(words) else words


def plain_values(variants: Sequence[str]) -> dict[str, str]:
    """What the template of the small network needs; each further variant is wider."""
    rows = [tuple((32 + 16 * i) * 2**stage for stage in range(4)) for i in range(max(1, len(variants)))]
    return _channel_values(rows, variants)


def published_values(source: str, models: Sequence[Published], variants: Sequence[str]) -> dict[str, str]:
    """What the templates of a wrapped model need. Raises UsageError where the variants can't share one class."""
    first = models[0]
    if any((model.stages, model.unused) != (first.stages, first.unused) for model in models):
        raise UsageError(f"--from {source}: these models differ in their stages; scaffold each under its own name.")
    noun = "MODEL" if first.library == "timm" else "CONFIG"
    options = ""
    if all(model.tag for model in models):
        tags = {variant: (model.tag,) for variant, model in zip(variants or ["default"], models, strict=True)}
        options += f"    weights={literal(tags, 4, len('weights=,'))},\n"
    if others := {model.tag: model.statistics for model in models if model.statistics != Published.statistics}:
        if len(others) == len(models) == 1:
            options += f"    statistics={literal(first.statistics, 4, len('statistics=,'))},\n"
        else:
            options += f"    tag_statistics={literal(others, 4, len('tag_statistics=,'))},\n"
    title = first.title
    if variants:
        names = [model.title.partition(" of ")[0] for model in models]
        title = f"{names[0]} to {names[-1]} of {first.title.rpartition(' ')[2]}"
    return _channel_values([model.channels for model in models], variants) | {
        "source_title": title,
        "model_table": _table(f"{noun}S" if variants else noun, [model.model for model in models], variants),
        "model_of": f"{noun}S[variant]" if variants else noun,
        "stages": literal(first.stages if first.library == "timm" else list(first.stages)),
        "unused": literal(first.unused) if first.unused else "",
        "published_options": options,
    }


def component_text(template: str, values: dict[str, str]) -> str:
    """The network and its registration in one module, which imports torch at its top."""
    texts = _sections(template, values | {"module_type": "nn.Module", "lazy_import": ""})
    own = [texts.get("own_imports"), f"from seghiero_core.registry import register_{values['kind']}"]
    tables = "\n".join(texts[key] for key in ("table", "constants") if key in texts)
    return read_template("component").substitute(
        title=texts["title"],
        advice=texts["advice"],
        imports=texts["imports"],
        own_imports="\n".join(filter(None, own)),
        body=_body(tables, texts["network"], texts["registration"]),
    )


def builtin_texts(template: str, values: dict[str, str]) -> tuple[str, str]:
    """The registration, free of torch like all of the built-ins', and the network that it imports when called."""
    kind, name = values["kind"], values["name"]
    lazy_import = f"from seghiero_core.{kind}s.networks.{name} import {values['class_name']}\n\n    "
    texts = _sections(template, values | {"module_type": "Any", "lazy_import": lazy_import})
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


def test_text(place: str, values: dict[str, str], variants: Sequence[str]) -> str:
    """The test that calls the conformance suite, for each variant."""
    standard, own, load = [], [f"from seghiero_core.testing import check_{values['kind']}"], ""
    if place == "plugin":
        standard = ["from pathlib import Path"]
        load = "load_plugins([Path(__file__).parents[1]])"
    elif place == "package":
        load = f'load_plugins(["{values["package"]}.{values["name"]}"])'
    if load:
        own.insert(0, "from seghiero_core.plugins import load_plugins")
    blocks = [standard, ["import pytest"] if variants else [], own]
    return read_template("test_variants" if variants else "test_component").substitute(
        values,
        imports="\n\n".join("\n".join(block) for block in blocks if block),
        load=f"\n{load}\n\n" if load else "\n",
        variants=literal(list(variants), 0, len('@pytest.mark.parametrize("variant", )')),
    )


def literal(value: Any, indent: int = 0, beside: int = 0) -> str:
    """`value` as Python source: on one line where `beside` further characters fit there, else one entry per line."""
    inline = _inline(value)
    if indent + beside + len(inline) <= LINE_LENGTH or not isinstance(value, dict | list | tuple):
        return inline
    return _exploded(value, indent)


def _exploded(value: Any, indent: int) -> str:
    opening, closing = {dict: "{}", list: "[]", tuple: "()"}[type(value)]
    items = value.items() if isinstance(value, dict) else ((None, item) for item in value)
    lines = [opening]
    for key, item in items:
        label = f"{_inline(key)}: " if isinstance(value, dict) else ""
        lines.append(f"{' ' * (indent + 4)}{label}{literal(item, indent + 4, len(label) + 1)},")
    return "\n".join([*lines, f"{' ' * indent}{closing}"])


def _inline(value: Any) -> str:
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
    """`NAME = row`, or with variants a table of them, one per line."""
    if variants:
        return f"{name} = {_exploded(dict(zip(variants, rows, strict=True)), 0)}"
    return f"{name} = {literal(rows[0], 0, len(name) + 3)}"


def _sections(template: str, values: dict[str, str]) -> dict[str, str]:
    """The parts of a template, each below a line `%% name`, filled in."""
    raw = read_template(template).template
    texts = {}
    for part in raw.split("%% ")[1:]:
        key, _, text = part.partition("\n")
        texts[key] = Template(text.rstrip("\n"))
    values = values | {"drop_unused": ""}
    if values.get("unused"):
        values["drop_unused"] = texts["drop_unused"].substitute(values) + "\n"
    return {key: text.substitute(values) for key, text in texts.items() if key != "drop_unused"}


def _body(constants: str, *definitions: str) -> str:
    """What follows the imports: constants after one blank line, definitions after two."""
    parts = [f"\n{constants}"] if constants else []
    return "\n\n\n".join([*parts, *definitions]) if constants else "\n\n" + "\n\n\n".join(definitions)
