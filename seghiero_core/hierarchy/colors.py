"""Colors of classes: the given ones, and automatic ones that show the tree and that the color-blind can tell apart.

Children take shades of their parent's hue, and the children of the root take hues that are far apart. Among siblings
each color is the candidate that is farthest from those before it, in the worst of three kinds of vision: normal, and
without red (protanopia) or green (deuteranopia) receptors. Distances are Euclidean in CIELAB. Other classes have a
smaller say, so that no two classes get one color while there are enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from seghiero_core.hierarchy.values import walk

# Linear RGB to XYZ for sRGB's primaries and white (D65), scaled so that white is (1, 1, 1).
_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
)
_TO_XYZ /= _TO_XYZ.sum(axis=1, keepdims=True)
# Machado, Oliveira and Fernandes 2009, severity 1: what a person with protanopia or deuteranopia sees, in linear RGB.
_VISIONS = np.array(
    [
        np.eye(3),
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    ]
)

_HUE_RANGE = 25  # degrees on either side of the parent's hue
_MIN_GAP = 120  # degrees: n children of the root have hues at least a third of 360 / n apart
_OTHERS = 6  # a color may be this many times nearer to the color of a class that is no sibling
_GRAY = 8  # chroma below which a color has no hue to speak of
_PAPER = (255, 255, 255)  # pictures are drawn on white: the children of the root keep away from it
_CALM = (38, 84, 15, 50)  # lightness from and to, chroma from and to
_WIDE = (25, 92, 0, 75)
_MOST = 256  # colors among siblings; then they repeat
_CLOSE = 15  # siblings closer than this have too few calm colors: take the wide range


def perceived(colors: np.ndarray) -> np.ndarray:
    """Convert colors to CIELAB for three kinds of vision.

    Args:
        colors: N,3 uint8 sRGB.

    Returns:
        3,N,3 float64 (lightness 0..100, a, b): as seen with normal vision, protanopia and deuteranopia.
    """
    values = np.asarray(colors) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    xyz = (linear @ _VISIONS.transpose(0, 2, 1)).clip(0, 1) @ _TO_XYZ.T
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def assign_colors(tree: Mapping[str, Any], given: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, int, int]]:
    """Choose a color for every node of a tree.

    Args:
        tree: Nested mappings from name to children; a leaf has none.
        given: R, G, B in 0..255 of the names whose color is fixed.

    Returns:
        R, G, B in 0..255 of every name. They depend on the arguments alone.
    """
    palette = _Palette(given)
    palette.assign_children(tree, None)
    return palette.colors


class _Candidates(NamedTuple):
    """Colors to choose from."""

    rgb: np.ndarray  # N,3 uint8
    lab: np.ndarray  # 3,N,3 as `perceived` returns
    hue: np.ndarray  # N, degrees
    calm: np.ndarray  # N bool
    wide: np.ndarray  # N bool


@cache
def _candidates() -> _Candidates:
    channel = np.arange(0, 256, 17)
    rgb = np.stack(np.meshgrid(channel, channel, channel, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = perceived(rgb)
    lightness, chroma = lab[0, :, 0], np.hypot(lab[0, :, 1], lab[0, :, 2])
    calm, wide = (
        (low <= lightness) & (lightness <= high) & (least <= chroma) & (chroma <= most)
        for low, high, least, most in (_CALM, _WIDE)
    )
    return _Candidates(rgb.astype(np.uint8), lab, _hue(lab[0]), calm, wide)


class _Palette:
    """The colors assigned so far, and how far each candidate is from the nearest of them."""

    def __init__(self, given: Mapping[str, Sequence[int]]) -> None:
        self.colors: dict[str, tuple[int, int, int]] = {}
        self.distance = np.full(len(_candidates().hue), np.inf)
        self.add({name: tuple(color) for name, color in given.items()})

    def add(self, colors: Mapping[str, tuple[int, int, int]]) -> None:
        for color in set(colors.values()) - set(self.colors.values()):
            np.minimum(self.distance, _distances(color), out=self.distance)
        self.colors |= colors

    def assign_children(self, tree: Mapping[str, Any], parent: str | None) -> None:
        """Add the colors of `tree`, the children of `parent`, and of all nodes below them."""
        above = _PAPER if parent is None else self.colors[parent]
        siblings = [above, *(self.colors[name] for name in tree if name in self.colors)]
        free = []
        for name in [name for name in tree if name not in self.colors]:
            below = [self.colors[node] for node, *_ in walk(tree[name]) if node in self.colors]
            if below:  # a parent of fixed colors takes their hue
                (color,) = self.choose(1, siblings, _near_hue(below))
                self.add({name: color})
                siblings.append(color)
            else:
                free.append(name)
        min_gap = _MIN_GAP / len(tree) if parent is None else 0
        self.add(dict(zip(free, self.choose(len(free), siblings, _near_hue([above]), min_gap), strict=True)))
        for name, children in tree.items():
            if children:
                self.assign_children(children, name)

    def choose(
        self, count: int, siblings: Sequence[Any], allowed: np.ndarray, min_gap: float = 0
    ) -> list[tuple[int, int, int]]:
        """Choose `count` of the candidates `allowed` (N bool), far from each other and from `siblings`.

        Classes that are not siblings may be nearer by the factor `_OTHERS`.
        """
        candidates = _candidates()
        distance = np.min([_distances(color) for color in set(siblings)], axis=0)
        distance = np.minimum(distance, _OTHERS * self.distance)
        for extent in (candidates.calm, candidates.wide):
            chosen, closest = _farthest_first(distance, count, np.flatnonzero(allowed & extent), min_gap)
            if closest >= _CLOSE:
                break
        return [tuple(candidates.rgb[chosen[i % len(chosen)]].tolist()) for i in range(count)]


def _farthest_first(distance: np.ndarray, count: int, pool: np.ndarray, min_gap: float) -> tuple[list[int], float]:
    """Choose candidates from `pool`, each the farthest from those before it; `distance` (N) is the one to begin with.

    Returns their indices, at most _MOST, and the least distance that one has from those before it.
    """
    lab, hue, distance = _candidates().lab[:, pool], _candidates().hue[pool], distance[pool]
    free, chosen, closest = np.ones(len(pool), dtype=bool), [], np.inf
    for _ in range(min(count, len(pool), _MOST)):
        best = int(np.argmax(np.where(free if free.any() else True, distance, -1)))
        closest = min(closest, distance[best])
        chosen.append(int(pool[best]))
        distance = np.minimum(distance, _distance(lab, lab[:, best]))
        free &= np.abs(_angle(hue - hue[best])) >= min_gap
    return chosen, closest


@lru_cache(maxsize=1024)
def _distances(color: tuple[int, int, int]) -> np.ndarray:
    """N distances of the candidates to a color."""
    return _distance(_candidates().lab, perceived(np.array([color]))[:, 0])


def _distance(lab: np.ndarray, color: np.ndarray) -> np.ndarray:
    """N distances of 3,N,3 colors to one (3,3), each in the vision in which it is least."""
    difference = lab - color[:, None]
    return np.sqrt(np.einsum("vnc,vnc->vn", difference, difference).min(axis=0))


def _near_hue(colors: Sequence[Any]) -> np.ndarray:
    """N bool: the candidates whose hue is about that of the mean of some colors; all if the mean is gray."""
    mean = perceived(np.array(colors))[0].mean(axis=0)
    hue = _candidates().hue
    if np.hypot(mean[1], mean[2]) < _GRAY:
        return np.ones(len(hue), dtype=bool)
    return np.abs(_angle(hue - _hue(mean))) <= _HUE_RANGE


def _hue(lab: np.ndarray) -> np.ndarray:
    return np.degrees(np.arctan2(lab[..., 2], lab[..., 1]))


def _angle(difference: np.ndarray) -> np.ndarray:
    """Wrap a difference of hues to -180..180 degrees."""
    return (difference + 180) % 360 - 180
