"""The keys of a data set that depend on its `type`: they are options of its reader, for all splits or for one."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from seghiero_core.config.messages import Fault, expectation, fault_at
from seghiero_core.errors import UsageError
from seghiero_core.hierarchy.values import short_repr
from seghiero_core.hierarchy.yaml_reader import Key
from seghiero_core.readers import HUB_OR_PATH, READERS, URL_OR_PATH, ReaderEntry

SPLITS = ("train", "val", "test")
"""The splits that a data set can have."""
REQUIRED_SPLITS = ("train", "val")
"""The splits that training needs."""
REQUIRED = (*REQUIRED_SPLITS, "mean", "std")
"""What training needs of a data set: these splits and, for images that aren't 8-bit RGB, their statistics."""
DEFAULT_TYPE = "folder"
BANDS_KEYS = ("channels", "mean", "std", "rgb", "nodata")
"""The keys of `dataset` that say what its images are, unless they are 8-bit RGB."""
_NOT_INHERITED = ("root", "check", "sources", *BANDS_KEYS)


def find_reader(type_: Any) -> ReaderEntry | None:
    """Look up a reader for a check that doesn't report an unknown one.

    Args:
        type_: The value of `dataset.type`.

    Returns:
        What is known about the reader; None for an unknown one.
    """
    try:
        return READERS.get(str(type_))
    except UsageError:
        return None


def expand_split(type_: Any, split: Any) -> Any:
    """Replace a split that is written as a string by its keys.

    Args:
        type_: The value of `dataset.type`.
        split: A split as in the YAML file.

    Returns:
        The keys of the split, or None for none.

    Raises:
        ValueError: When it is neither None nor keys nor such a string.
    """
    entry = find_reader(type_)
    if split is None or isinstance(split, Mapping | BaseModel):
        return split
    if entry is None:
        return {}  # the unknown type is the fault
    if isinstance(split, str) and split and entry.short:
        return entry.short(split)
    raise ValueError(f"expected {entry.form}, found {short_repr(split)}")


def complete_source(dataset: Mapping[str, Any], source: Mapping[str, Any]) -> dict[str, Any]:
    """Add what an entry of `dataset.sources` leaves out from `dataset`; nothing where it has another type.

    Args:
        dataset: The `dataset` section as plain values.
        source: The entry.

    Returns:
        The entry with all its keys.
    """
    type_ = dataset.get("type", DEFAULT_TYPE)
    if source.get("type", type_) != type_:
        return dict(source)
    return {**{key: value for key, value in dataset.items() if key not in _NOT_INHERITED}, **source}


def reader_options(part: Any, split: Any) -> dict[str, Any]:
    """Collect the options that read one split.

    Args:
        part: A `DatasetConfig` or `SourceConfig`.
        split: Its `SplitConfig`.

    Returns:
        All options of its reader, with the values of the split, else of the part, else the defaults.
    """
    entry = READERS.get(part.type)
    model = _model(entry).model_validate(_given(entry, part.model_extra, split.model_extra))
    return {name: getattr(model, name) for name in entry.options}


def reader_faults(dataset: Any, known: Mapping[str, Collection[str]], hint: Callable[..., str]) -> Iterator[Fault]:
    """Check the types of the data set and its sources, and the options of their readers.

    Args:
        dataset: The `dataset` section as plain values.
        known: The other keys of "dataset" and of a "source".
        hint: Says which key is meant by an unknown one: `suggestions.unknown_key`.

    Yields:
        The faults; one of a key that several splits or sources use, once.
    """
    if not isinstance(dataset, Mapping):
        return  # the schema reports it
    entries = dataset.get("sources") if isinstance(dataset.get("sources"), list) else []
    sources = {i: source for i, source in enumerate(entries) if isinstance(source, Mapping)}
    faults: dict[Key, str] = {}
    for position, own in {None: dataset, **sources}.items():
        is_source = position is not None
        prefix: Key = ("dataset", "sources", position) if is_source else ("dataset",)
        whole = complete_source(dataset, own) if is_source else own
        try:
            entry = READERS.get(str(whole.get("type", DEFAULT_TYPE)))
        except UsageError as error:
            faults[(*(prefix if "type" in own else ("dataset",)), "type")] = str(error)
            continue
        keys = [*known["source" if is_source else "dataset"], *entry.options]
        for key in own:
            if key not in keys:
                faults[(*prefix, key)] = f"unknown key.{hint((*prefix, key), keys)}"
        for split in SPLITS if is_source or not sources else ():
            for key, text in _split_faults(entry, whole, split, hint):
                inherited = key[0] not in own
                faults.setdefault((*(("dataset",) if inherited else prefix), *key), text)
    yield from (fault_at(key, text) for key, text in faults.items())


def relocate(type_: Any, values: Mapping[str, Any], move: Callable[[str, Any], Any]) -> dict[str, Any]:
    """Change the paths among the options of a reader.

    Args:
        type_: The value of `dataset.type`.
        values: The options, and other keys, which are left out.
        move: Called with (path, annotation) of each path that is no URL, it returns the new path.

    Returns:
        The options that hold paths, changed.
    """
    entry = find_reader(type_)
    options = entry.options if entry else {}
    return {
        key: [_move(each, annotation, move) for each in value]
        if isinstance(value, list)
        else _move(value, annotation, move)
        for key, value in values.items()
        if key in options and (annotation := _place(options[key].annotation)) and value is not None
    }


def _move(value: Any, annotation: Any, move: Callable[[str, Any], Any]) -> Any:
    is_path = isinstance(value, str | Path) and "://" not in str(value)
    return move(str(value), annotation) if is_path else value


def _place(annotation: Any) -> Any:
    """`Path`, `HUB_OR_PATH` or `URL_OR_PATH` where an option is one of these, or may be; else None."""
    if annotation is Path or Path in typing.get_args(annotation):
        return Path
    kinds = getattr(annotation, "__metadata__", ())
    return next((kind for kind in (HUB_OR_PATH, URL_OR_PATH) if kind in kinds), None)


def _model(entry: ReaderEntry) -> type[BaseModel]:
    """The keys of a split as a schema."""
    fields = {
        name: (option.annotation, ... if option.default is inspect.Parameter.empty else option.default)
        for name, option in entry.options.items()
    }
    return create_model(entry.name, __config__=ConfigDict(extra="forbid", allow_inf_nan=False), **fields)


def _given(entry: ReaderEntry, part: Mapping[str, Any], split: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are set: those of the part that its reader has, and all of the split."""
    return {**{key: value for key, value in part.items() if key in entry.options}, **split}


def _split_faults(
    entry: ReaderEntry, part: Mapping[str, Any], split: str, hint: Callable[..., str]
) -> Iterator[tuple[Key, str]]:
    """The options of a split that are wrong, as keys of the part, and what is wrong with them."""
    try:
        own = expand_split(entry.name, part.get(split))
        if isinstance(own, Mapping):
            _model(entry).model_validate(_given(entry, part, own))
    except ValidationError as error:
        for each in error.errors(include_url=False):
            name = each["loc"][0]
            if each["type"] == "missing":
                yield (split, name), "this key is required."
            elif each["type"] == "extra_forbidden":
                yield (split, name), f"unknown key.{hint((split, name), list(entry.options))}"
            else:
                yield (split, name) if name in own else (name,), expectation(each)
    except ValueError:
        return  # the schema reports it
