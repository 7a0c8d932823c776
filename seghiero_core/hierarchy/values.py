"""The values of the `classes` section: whether labels, tree and colors have the right form."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from seghiero_core.hierarchy.yaml_reader import Key

LARGEST_VALUE = 65535  # masks have up to 16 bits
_HEX = re.compile(r"#([0-9a-fA-F]{3}|[0-9a-fA-F]{6})")


class FaultAt(ValueError):
    """A wrong value somewhere inside another.

    Attributes:
        key: Where it is, from the value that was checked.
    """

    def __init__(self, key: Key, text: str) -> None:
        super().__init__(text)
        self.key = key


def check_labels(labels: Any) -> dict[int, str | list[str]]:
    """Check the form of `classes.labels`.

    Args:
        labels: A list of names, or a mapping from mask value to a name or to a list of names.

    Returns:
        The name or names of each mask value.

    Raises:
        FaultAt: When it is something else; the message says what was expected.
    """
    if not isinstance(labels, Mapping | Sequence) or isinstance(labels, str) or not labels:
        text = f"expected a list of names, or a mapping from mask value to name, found {short_repr(labels)}"
        hint = f"; write [{labels}]" if isinstance(labels, str) and "," in labels else ""
        raise FaultAt((), text + hint)
    pairs = dict(labels) if isinstance(labels, Mapping) else dict(enumerate(labels))
    for value, name in pairs.items():
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST_VALUE:
            text = f"expected mask values from 0 to {LARGEST_VALUE}, found {short_repr(value)}"
            raise FaultAt((value,), text + _value_hint(value, name))
        if isinstance(name, Mapping) or (is_collection(name) and not (isinstance(labels, Mapping) and name)):
            raise FaultAt((value,), f"expected a name, found {short_repr(name)}{_nested_label_hint(name)}")
        pairs[value] = _check_set(name, value) if is_collection(name) else _check_name(name, (value,))
    return pairs


def check_tree(tree: Any) -> Any:
    """Check the form of `classes.tree`.

    Args:
        tree: Nested mappings and lists of names.

    Returns:
        The same as plain dicts and lists.

    Raises:
        FaultAt: When it holds something else; the message says what was expected.
    """
    if tree is None:
        return None
    if not is_collection(tree):
        raise FaultAt((), f"expected groups, such as {{vehicle: [car, bus]}}, found {short_repr(tree)}")
    return _check_children(tree, ())


def check_colors(colors: Any) -> dict[str, list[int]] | None:
    """Check the form of `classes.colors`.

    Args:
        colors: A mapping from name to [R, G, B] in 0..255, "#RRGGBB" or "#RGB".

    Returns:
        R, G, B of each name.

    Raises:
        FaultAt: When it is something else; the message says what was expected.
    """
    if colors is None:
        return None
    if not isinstance(colors, Mapping):
        raise FaultAt((), f"expected a mapping such as {{sky: [70, 130, 180]}}, found {short_repr(colors)}")
    checked = {}
    for name, color in colors.items():
        if not isinstance(name, str):
            raise FaultAt((name,), f"expected the name of a class before the color, found {short_repr(name)}")
        checked[name] = _rgb(name, color)
    return checked


def nodes_of(tree: Any, key: Key = ()) -> Iterator[tuple[Key, str, Any]]:
    """Yield the nodes of a checked tree in the form in which it is written, parents first.

    Args:
        tree: What `check_tree` returns.
        key: Where it is.

    Yields:
        The key, the name and the children of each node; the children of a leaf are None or empty.
    """
    if isinstance(tree, Mapping):
        for name, children in tree.items():
            yield (*key, name), name, children
            yield from nodes_of(children, (*key, name))
    elif isinstance(tree, str):
        yield key, tree, None
    else:
        for position, item in enumerate(tree or ()):
            yield from nodes_of(item, (*key, position))


def walk(
    tree: Mapping[str, Any], parent: str | None = None, depth: int = 1
) -> Iterator[tuple[str, str | None, int, Mapping[str, Any]]]:
    """Yield the nodes of a nested tree, parents first, in the order in which they are written.

    Args:
        tree: Nested mappings from name to children.
        parent: The name of the node above `tree`. None stands for the root.
        depth: The depth of the first nodes.

    Yields:
        The name, the parent's name, the depth and the children of each node.
    """
    for name, children in tree.items():
        yield name, parent, depth, children
        yield from walk(children, name, depth + 1)


def short_repr(value: Any) -> str:
    """Show a value of a config in a message.

    Args:
        value: A plain value.

    Returns:
        Its `repr`, cut off after 60 characters; for true, false and nothing, the word of YAML.
    """
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def is_collection(value: Any) -> bool:
    """Tell a mapping or list from a single value.

    Args:
        value: A plain value.

    Returns:
        True for a mapping or list, false for text, numbers and None.
    """
    return isinstance(value, Mapping | Sequence) and not isinstance(value, str)


def _check_set(names: Sequence[Any], value: int) -> list[str]:
    """Check the names that one mask value may stand for."""
    for position, name in enumerate(names):
        if is_collection(name):
            text = f"expected a name, found {short_repr(name)}; a label is a name or a list of names"
            raise FaultAt((value, position), text)
        if _check_name(name, (value, position)) in names[:position]:
            raise FaultAt((value, position), f"'{name}' is already in the list; remove it")
    return list(names)


def _check_children(tree: Any, key: Key) -> Any:
    if tree is None:
        return None
    if isinstance(tree, Mapping):
        if set(tree) == {"name", "children"} and isinstance(tree["name"], str) and is_collection(tree["children"]):
            group = f"{tree['name']}: {tree['children']}".replace("'", "")
            raise FaultAt(key, f"a group is written as {{{group}}}, without the words name and children")
        return {
            _check_name(name, (*key, name)): _check_children(children, (*key, name)) for name, children in tree.items()
        }
    if not is_collection(tree):
        return _check_name(tree, key)
    for position, item in enumerate(tree):
        if item is None or (is_collection(item) and not item):
            raise FaultAt((*key, position), f"item {position + 1} of the list is empty; remove it")
        if is_collection(item) and not isinstance(item, Mapping):
            example = ", ".join(map(str, item))
            raise FaultAt((*key, position), f"a group needs a name: write {{NAME: [{example}]}} instead of [{example}]")
    return [_check_children(item, (*key, position)) for position, item in enumerate(tree)]


def _check_name(name: Any, key: Key) -> str:
    if isinstance(name, str) and name.strip():
        return name
    found = short_repr(name)
    if isinstance(name, bool):
        one, other = ("yes", "on") if name else ("no", "off")
        hint = f": YAML reads {one} and {other} as {found}, so write the name in quotes: '{one}' or '{other}'"
    elif name is None or isinstance(name, str):
        hint = ""
    else:
        hint = f"; if it is meant as a name, put it in quotes: '{name}'"
    raise FaultAt(key, f"expected a name, found {found}{hint}")


def _value_hint(value: Any, name: Any) -> str:
    if is_collection(name):
        return "; groups of labels belong in classes.tree"
    if isinstance(value, str) and value.isdigit():
        return f"; write it without quotes: {value}: {name}"
    if isinstance(name, int):
        return f"; write the value before the name: {{{name}: {value}}}"
    return ""


def _nested_label_hint(name: Any) -> str:
    if isinstance(name, Mapping) and "name" in name:
        return "; write the names alone, and colors in classes.colors"
    if isinstance(name, Mapping) and any(is_collection(children) for children in name.values()):
        return "; groups of labels belong in classes.tree"
    return "; for mask values write one mapping: {0: sky, 1: road}"


def _rgb(name: str, color: Any) -> list[int]:
    if isinstance(color, str) and _HEX.fullmatch(color):
        digits = color[1:] if len(color) == 7 else "".join(digit * 2 for digit in color[1:])
        return list(bytes.fromhex(digits))
    is_triple = is_collection(color) and len(color) == 3
    if is_triple and all(isinstance(c, int) and not isinstance(c, bool) and 0 <= c <= 255 for c in color):
        return list(color)
    hint = " (YAML reads an unquoted # as the start of a comment)" if color is None else ""
    raise FaultAt((name,), f"expected [R, G, B] from 0 to 255 or '#RRGGBB' in quotes, found {short_repr(color)}{hint}")
