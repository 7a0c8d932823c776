"""Translate the keys of a weights file to those of a backbone.

In the file of a whole model, the backbone's keys have a prefix (`backbone.`, `module.`, `visual.trunk.`, ...). The
prefix is found by counting: it is the one whose removal gives the most keys that the backbone has.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from seghiero_core.errors import WeightsError
from seghiero_core.registry import NECK
from seghiero_core.weights.key_layouts import LAYOUTS, Layout

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Translated:
    """The tensors of a file under the names of a backbone.

    Attributes:
        layout: The file's naming scheme; "own" if it needs no renaming.
        tensors: The backbone's names, mapped to (key in the file, tensor).
        unmatched: Keys in the file that fit no name of the backbone, mapped to what they were translated to.
        reshaped: Keys in the file whose tensors were split, or reshaped by dimensions of size 1.
    """

    layout: str
    tensors: Mapping[str, tuple[str, Tensor]]
    unmatched: Mapping[str, str]
    reshaped: tuple[str, ...]


def translate(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Translated:
    """Translate the keys of a file to those of a backbone, and shapes that differ only by dimensions of size 1.

    Args:
        state: The file's tensors, in any known layout, with or without a prefix.
        own: The backbone's state dict.

    Returns:
        The matched tensors, and what didn't match. Their shapes may still differ from the backbone's.

    Raises:
        WeightsError: If the file holds two networks that fit equally well.
    """
    layouts = [layout for layout in LAYOUTS if any(re.search(layout.marker, key) for key in state)]
    # Unchanged keys come first: a plugin may wrap a network that itself uses one of the layouts.
    matches = [_match(layout, state, own, wrapper) for layout in (None, *layouts) for wrapper in _wrappers(own)]
    best = max(matches, key=lambda match: match.count)
    if best.rival is not None and best.count > len(own) / 2:
        raise WeightsError(
            f"the file holds two networks that fit, with the prefixes '{best.prefix}' and '{best.rival}'; keep one."
        )
    tensors, unmatched, reshaped = {}, {}, []
    for part in best.parts:
        name, tensor = part.name.removeprefix(best.prefix), part.tensor
        target = best.wrapper + name
        if not part.name.startswith(best.prefix) or target not in own:
            unmatched[part.key] = name
            continue
        shape = own[target].shape
        if tensor.shape != shape and [n for n in tensor.shape if n > 1] == [n for n in shape if n > 1]:
            tensor = tensor.reshape(shape)
            reshaped.append(part.key)
        elif part.was_split:
            reshaped.append(part.key)
        tensors[target] = (part.key, tensor)
    return Translated(best.layout, tensors, unmatched, tuple(dict.fromkeys(reshaped)))


class _Part(NamedTuple):
    """A tensor of the file: its key, whether it was split from a fused tensor, its translated name, and its values."""

    key: str
    was_split: bool
    name: str
    tensor: Tensor


@dataclass(frozen=True)
class _Match:
    """How well a file fits a backbone when it is read in one layout.

    Attributes:
        layout: Name of the layout.
        parts: The file's tensors.
        wrapper: Start of the backbone's names that the file lacks.
        prefix: Start of the file's names that the backbone lacks.
        count: How many names match without `wrapper` and `prefix`.
        rival: Another prefix with as many matches, if there is one.
    """

    layout: str
    parts: Sequence[_Part]
    wrapper: str
    prefix: str
    count: int
    rival: str | None


def _wrappers(own: Mapping[str, Tensor]) -> list[str]:
    """Return the starts of the backbone's names that a file may lack.

    A network that is kept as `self.net` has `net.stem.weight` where the file has `stem.weight`; a neck isn't published.
    """
    first_parts = {f"{key.partition('.')[0]}." for key in own} - {NECK}
    if len(first_parts) == 1:
        return ["", *first_parts]
    return [""]


def _match(layout: Layout | None, state: Mapping[str, Tensor], own: Mapping[str, Tensor], wrapper: str) -> _Match:
    """Read the file in a layout (None: unchanged) and find the prefix that gives the most names of the backbone."""
    parts = list(_translated_parts(state, layout))
    counts = Counter(
        part.name[:length]
        for part in parts
        for length in _prefix_lengths(part.name)
        if wrapper + part.name[length:] in own
    )
    most_common = counts.most_common(2)
    prefix, count = most_common[0] if most_common else ("", 0)
    rival = None
    if len(most_common) == 2 and most_common[1][1] == count:
        rival = most_common[1][0]
    return _Match(layout.name if layout else "own", parts, wrapper, prefix, count, rival)


def _prefix_lengths(name: str) -> list[int]:
    """Return the lengths of the prefixes to try: none, and those that end at one of the first four dots."""
    ends = [dot.end() for dot in re.finditer(r"\.", name)]
    return [0, *ends[:4]]


def _translated_parts(state: Mapping[str, Tensor], layout: Layout | None) -> Iterator[_Part]:
    """Split the fused tensors of a file and rename all of them."""
    for key, tensor in state.items():
        replacements = _fused_replacements(key, layout)
        if not replacements or tensor.ndim == 0 or len(tensor) % len(replacements):
            yield _Part(key, False, _rename(key, layout), tensor)
            continue
        for name, chunk in zip(replacements, tensor.chunk(len(replacements)), strict=True):
            yield _Part(key, True, _rename(name, layout), chunk)


def _fused_replacements(key: str, layout: Layout | None) -> list[str]:
    """Return the keys that a fused tensor is split into; empty for any other tensor."""
    for old, new_parts in layout.fused if layout else ():
        if old in key:
            return [key.replace(old, new) for new in new_parts]
    return []


def _rename(key: str, layout: Layout | None) -> str:
    for pattern, replacement in layout.renames if layout else ():
        key = re.sub(pattern, replacement, key)
    return key
