"""The classes of a converted data set: mask values by name, and the tree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from seghiero_core.data.converters.conversion import Options
from seghiero_core.errors import DataError, UsageError, shorten

IGNORE, IGNORE_16_BITS = 255, 65535
BACKGROUND = "background"
UNLABELED_IGNORED = "ignore"
"""What `--unlabeled` calls pixels without a class."""


@dataclass(frozen=True)
class NamedClasses:
    """The classes of a data set whose annotations have names.

    Attributes:
        section: The `classes` section of the config.
        values: The mask value of each name; the pixels of other names are ignored.
        ignore: The value of ignored pixels.
        background: The value of pixels without an object.
        without_label: The names of the data set that have no value.
    """

    section: dict[str, Any]
    values: dict[str, int]
    ignore: int
    background: int
    without_label: tuple[str, ...]


def named_classes(
    names: Sequence[str],
    options: Options,
    *,
    unlabeled: str = BACKGROUND,
    parents: Mapping[str, str] | None = None,
    colors: Mapping[str, Sequence[int]] | None = None,
) -> NamedClasses:
    """Number the classes of a data set, or look them up in those of `--config`.

    Args:
        names: The classes of the data set, without repeats.
        options: What the user chose.
        unlabeled: The class of pixels without an object where the user chose none.
        parents: The group of each name, and of groups their group. Default: no tree.
        colors: R, G, B of some names.

    Returns:
        The classes.

    Raises:
        UsageError: When the labels of `--config` lack the class of unlabeled pixels, or have no name of the data set.
        DataError: When the groups form a circle.
    """
    if options.classes is not None:
        return _configured(names, options)
    rest = unlabeled if options.unlabeled is None else options.unlabeled
    labels = list(names) if rest == UNLABELED_IGNORED or rest in names else [rest, *names]
    ignore = IGNORE if len(labels) <= IGNORE else IGNORE_16_BITS
    values = {name: value for value, name in enumerate(labels)}
    section: dict[str, Any] = {"labels": {value: name for name, value in values.items()}}
    if tree := tree_of(labels, parents or {}):
        section["tree"] = tree
    section["ignore"] = ignore
    if colors:
        section["colors"] = {name: list(color) for name, color in colors.items()}
    return NamedClasses(section, values, ignore, values.get(rest, ignore), ())


def tree_of(labels: Sequence[str], parents: Mapping[str, str]) -> dict[str, Any] | None:
    """Build the tree of some labels from their groups. A group that contains every label is left out.

    Args:
        labels: The labels; one that is also a group stands at an inner node.
        parents: The group of each name, and of groups their group.

    Returns:
        The tree as `classes.tree` is written; None if it is flat.

    Raises:
        DataError: When the groups form a circle.
    """
    children: dict[str | None, dict[str, None]] = {None: {}}
    for label in labels:
        seen = [label]
        while (parent := parents.get(seen[-1])) is not None:
            if parent in seen:
                raise DataError(f"the groups of classes form a circle: {' in '.join([*seen, parent])}; correct them.")
            children.setdefault(parent, {})[seen[-1]] = None
            seen.append(parent)
        children[None][seen[-1]] = None
    top: str | None = None
    while len(children[top]) == 1 and (only := next(iter(children[top]))) in children and only not in labels:
        top = only

    def nested(name: str | None) -> Any:
        below = {child: nested(child) if child in children else None for child in children[name]}
        return list(below) if name != top and not any(below.values()) else below

    tree = nested(top)
    return tree if any(tree.values()) else None


def unique_names(named: Iterable[tuple[Any, str]]) -> list[str]:
    """Check the names of classes.

    Args:
        named: Pairs of a name and what to call its place in a message.

    Returns:
        The names without repeats, in order; numbers as text.

    Raises:
        DataError: When a name is empty or not text.
    """
    names: dict[str, None] = {}
    for name, where in named:
        names[checked_name(name, where)] = None
    return list(names)


def checked_name(name: Any, where: str) -> str:
    """Check the name of a class.

    Args:
        name: The name; a whole number stands for its digits.
        where: What to call its place in a message.

    Returns:
        The name as text.

    Raises:
        DataError: When it is empty or not text.
    """
    text = str(name) if isinstance(name, int) and not isinstance(name, bool) else name
    if not isinstance(text, str) or not text.strip() or not _is_unicode(text):
        raise DataError(f"{where}: expected the name of a class, found {name!r}; correct the file.")
    return text


def _configured(names: Sequence[str], options: Options) -> NamedClasses:
    """The values of `--config`, for the names that are labels in it."""
    section = dict(options.classes or {})
    values = {name: value for value, name in section["labels"].items() if isinstance(name, str)}
    known = [name for name in names if name in values]
    if names and not known:
        raise UsageError(
            f"no class of the data set is a label in the config: {shorten(names, 5)}. Its labels are "
            f"{shorten(list(values), 5)}; correct classes.labels, or leave --config out."
        )
    rest = options.unlabeled
    if rest not in (None, UNLABELED_IGNORED) and rest not in values:
        raise UsageError(
            f"--unlabeled {rest}: the config has no such label; known: {shorten(list(values), 5)}, and ignore."
        )
    background = values.get(rest or BACKGROUND, section["ignore"]) if rest != UNLABELED_IGNORED else section["ignore"]
    without_label = tuple(name for name in names if name not in values)
    return NamedClasses(section, values, section["ignore"], background, without_label)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which no file can hold
        return False
    return True
