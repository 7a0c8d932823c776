"""YAML as plain values with the line of every key. Runs no code, follows no alias bomb, hides no repeated key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from seghiero_core.errors import ConfigError

MAX_VALUES = 200_000
MAX_DEPTH = 100
Key = tuple[Any, ...]


def read_yaml_file(path: Path) -> tuple[Any, dict[Key, int]]:
    """The document in `path` and the line (1-based) of every key path in it. Raises ConfigError."""
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file. `seghiero init DIR` writes one to start from.") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder; name the YAML file in it.") from None
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: not a text file (byte {error.start} is not UTF-8); a YAML file is needed."
        ) from None
    return read_yaml(text, str(path))


def read_yaml(text: str, name: str) -> tuple[Any, dict[Key, int]]:
    """As `read_yaml_file`, from text; `name` stands for the file in messages."""
    lines: dict[Key, int] = {}
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        value = None if node is None else _Values(loader, lines, name).of(node, ())
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{name}{line}: not valid YAML: {error.problem or error.context}.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not valid YAML: {str(error).splitlines()[0]}.") from None
    except RecursionError:
        raise ConfigError(f"{name}: nested too deeply to be a config.") from None
    finally:
        if loader is not None:
            loader.dispose()
    return value, lines


class _Values:
    """Turns YAML nodes into values, counting them, so that an alias bomb ends in a message."""

    def __init__(self, loader: yaml.SafeLoader, lines: dict[Key, int], name: str):
        self.loader, self.lines, self.name, self.count = loader, lines, name, 0

    def of(self, node: yaml.Node, key: Key) -> Any:
        line = node.start_mark.line + 1
        self.count += 1
        if self.count > MAX_VALUES or len(key) > MAX_DEPTH:
            raise ConfigError(
                f"{self.name}, line {line}: expands to far more values than a config has; remove its aliases."
            )
        self.lines.setdefault(key, line)
        if isinstance(node, yaml.ScalarNode):
            try:
                return self.loader.construct_object(node)
            except (yaml.constructor.ConstructorError, ValueError) as error:
                problem = getattr(error, "problem", None) or error
                raise ConfigError(f"{self.name}, line {line}: {problem}; write a plain value.") from None
        if node.tag not in ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
            raise ConfigError(f"{self.name}, line {line}: the tag '{node.tag}' is not allowed; write a plain value.")
        if isinstance(node, yaml.SequenceNode):
            return [self.of(item, (*key, i)) for i, item in enumerate(node.value)]
        mapping: dict[Any, Any] = {}
        for name_node, value_node in node.value:
            line = name_node.start_mark.line + 1
            if not isinstance(name_node, yaml.ScalarNode):
                raise ConfigError(f"{self.name}, line {line}: a key must be a word or a number.")
            name = self.of(name_node, (*key, "<key>"))
            if name in mapping:
                raise ConfigError(
                    f"{self.name}, line {line}: the key '{name}' stands twice in one mapping; remove one."
                )
            self.lines[(*key, name)] = line
            mapping[name] = self.of(value_node, (*key, name))
        return mapping
