"""Reading YAML as plain values, with the line of every key.

No code is run; an alias bomb and a duplicate key are errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from seghiero_core.errors import ConfigError, nearest_path, shorten

Key = tuple[Any, ...]
"""The path to a value: the keys and list positions from the top of the document."""

_MAX_VALUES = 200_000
_MAX_DEPTH = 100
_EXPLANATIONS = {
    "'\\t'": "found a tab; use spaces instead",
    "mapping values are not allowed": "unexpected ':'; put each key on its own line, and text with ': ' in quotes",
    "could not find expected ':'": "expected 'key: value', with a space after the colon",
    "cannot start any token": "put text that begins with a special character in quotes",
    "unexpected end of stream": "a quotation mark is missing",
    "another document": "a second document begins here ('---'); a config is one",
    "expected <block end>": "the indentation differs from the lines above",
    "expected ',' or ']'": "',' or ']' is missing from a list",
    "expected ',' or '}'": "',' or '}' is missing from a mapping",
}
"""What to say instead of the parser's words, by a part of them."""
_COLLECTION_TAGS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


def read_yaml_file(path: Path) -> tuple[Any, dict[Key, int]]:
    """Read a YAML file.

    Args:
        path: The file, in UTF-8.

    Returns:
        The document (None for an empty file), and the line of every key in it, from 1.

    Raises:
        ConfigError: When the file can't be read, is not valid YAML, or has tags, repeated keys or too many values.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        init = "`seghiero init DIR` writes a config to start from."
        raise ConfigError(f"{path}: no such file.{nearest_path(path)} {init}") from None
    except IsADirectoryError:
        found = sorted(each.name for each in path.iterdir() if each.suffix in (".yaml", ".yml"))
        hint = f": {shorten(found)}" if found else ""
        raise ConfigError(f"{path} is a folder; give the YAML file in it{hint}.") from None
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file (byte {error.start} is not UTF-8); expected a YAML file.") from None
    return read_yaml(text, str(path))


def read_yaml(text: str, name: str) -> tuple[Any, dict[Key, int]]:
    """Read a YAML document from text.

    Args:
        text: The document.
        name: What to call it in messages, such as its path.

    Returns:
        The document and the line of every key in it, as `read_yaml_file` returns them.

    Raises:
        ConfigError: When the text is not valid YAML, or has tags, repeated keys or too many values.
    """
    lines: dict[Key, int] = {}
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        value = None if node is None else _Converter(loader, lines, name).convert(node, ())
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{name}{line}: not valid YAML: {_explain(error)}.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not valid YAML: {str(error).splitlines()[0]}.") from None
    except RecursionError:
        raise ConfigError(f"{name}: nested too deeply for a config.") from None
    finally:
        if loader is not None:
            loader.dispose()
    return value, lines


def dotted(key: Key) -> str:
    """Write a key as users do.

    Args:
        key: The key.

    Returns:
        For example "training.lr"; a key that YAML reads as true, false or null is written so.
    """
    words = {True: "true", False: "false", None: "null"}
    return ".".join(words[part] if part is None or isinstance(part, bool) else str(part) for part in key)


def place(key: Key, places: Mapping[Key, str], path: Path) -> str:
    """Say where a key is written.

    Args:
        key: The key.
        places: Where keys are written, such as "cfg.yaml, line 3".
        path: The file.

    Returns:
        The place of the key itself, else that of the closest section around it, else the file.
    """
    for length in range(len(key), 0, -1):
        if key[:length] in places:
            return places[key[:length]]
    return str(path)


def _explain(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or error.context or ""
    return next((text for part, text in _EXPLANATIONS.items() if part in problem), problem)


class _Converter:
    """Converts YAML nodes to values and records their lines; counts them, so that an alias bomb ends in a message."""

    def __init__(self, loader: yaml.SafeLoader, lines: dict[Key, int], name: str):
        self.loader, self.lines, self.name, self.count = loader, lines, name, 0

    def convert(self, node: yaml.Node, key: Key) -> Any:
        self.count += 1
        if self.count > _MAX_VALUES or len(key) > _MAX_DEPTH:
            raise self.error(node, "expands to far more values than a config has; remove its aliases.")
        self.lines.setdefault(key, node.start_mark.line + 1)
        if isinstance(node, yaml.ScalarNode):
            return self.convert_scalar(node)
        if node.tag not in _COLLECTION_TAGS:
            raise self.error(node, f"the tag '{node.tag}' is not allowed; write a plain value.")
        if isinstance(node, yaml.SequenceNode):
            return [self.convert(item, (*key, i)) for i, item in enumerate(node.value)]
        return self.convert_mapping(node, key)

    def convert_scalar(self, node: yaml.ScalarNode) -> Any:
        try:
            return self.loader.construct_object(node)
        except (yaml.constructor.ConstructorError, ValueError) as error:
            problem = getattr(error, "problem", None) or error
            raise self.error(node, f"{problem}; write a plain value.") from None

    def convert_mapping(self, node: yaml.MappingNode, key: Key) -> dict[Any, Any]:
        mapping: dict[Any, Any] = {}
        for name_node, value_node in node.value:
            if not isinstance(name_node, yaml.ScalarNode):
                raise self.error(name_node, "a key must be a word or a number.")
            name = self.convert(name_node, (*key, "<key>"))
            if name in mapping:
                first = self.lines[(*key, name)]
                raise self.error(name_node, f"duplicate key '{name}', already on line {first}; remove one of them.")
            self.lines[(*key, name)] = name_node.start_mark.line + 1
            mapping[name] = self.convert(value_node, (*key, name))
        return mapping

    def error(self, node: yaml.Node, problem: str) -> ConfigError:
        return ConfigError(f"{self.name}, line {node.start_mark.line + 1}: {problem}")
