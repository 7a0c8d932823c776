"""Synthetic landscapes with a three-level class tree, rendered from a seed: the data that `seghiero init` writes.

Every pixel belongs to one of nine leaves. Sky is a leaf directly below the root; grass, water and sand are ground;
discs and rings are round shapes; bricks, triangles and stars are angular shapes. Colors overlap between classes on
purpose: a network has to use texture and shape.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 128, 160  # px
LABELS = ("sky", "grass", "water", "sand", "disc", "ring", "brick", "triangle", "star")
TREE = {
    "sky": {},
    "ground": {"grass": {}, "water": {}, "sand": {}},
    "shape": {"round": {"disc": {}, "ring": {}}, "angular": {"brick": {}, "triangle": {}, "star": {}}},
}
IMAGES_PER_SPLIT = {"train": 96, "val": 24}

COARSE_LABELS = {10: ("sky", "water"), 20: "ground", 30: "round", 40: "angular"}
"""What the values of coarse masks stand for: nodes, and a set that cuts across the tree."""
COARSE_IGNORE = 0
COARSE_SUFFIX = "_coarse"
MIXED_IMAGES = {"fine": 8, "coarse": 80, "unlabeled": 80, "val": 24}
_COARSE_VALUES = np.array([10, 20, 10, 20, 30, 30, 40, 40, 40], dtype=np.uint8)  # of each of LABELS

_Field = np.ndarray  # H,W float64
_Color = tuple[float, float, float]  # RGB in 0..1

# Pairs of RGB in 0..1: summer and dry grass, the sea by day and at dusk, yellow and pink sand.
_GRASS_COLORS = (((0.13, 0.33, 0.12), (0.60, 0.74, 0.27)), ((0.38, 0.32, 0.13), (0.88, 0.76, 0.42)))
_WATER_COLORS = (((0.33, 0.64, 0.70), (0.08, 0.33, 0.50)), ((0.80, 0.62, 0.66), (0.30, 0.30, 0.52)))
_SAND_COLORS = (
    ((0.78, 0.60, 0.38), (0.96, 0.85, 0.62)),
    ((0.66, 0.48, 0.44), (0.92, 0.76, 0.70)),
)
_SHAPE_COLORS = ((0.86, 0.26, 0.20), (0.95, 0.60, 0.14), (0.20, 0.42, 0.70), (0.62, 0.26, 0.58), (0.14, 0.56, 0.48))


def write_data_set(folder: Path, seed: int = 0) -> None:
    """Render `{train,val}/{images/NNN.jpg,masks/NNN.png}`: 96 and 24 pairs of 128x160 px.

    Args:
        folder: Where to write; it must not have these folders yet.
        seed: Determines every pixel.
    """
    for split_number, (split, count) in enumerate(IMAGES_PER_SPLIT.items()):
        for number in range(count):
            _write_scene(folder / split, (seed, split_number, number))


def write_mixed_data_set(folder: Path, seed: int = 0) -> None:
    """Render landscapes of which few are labeled finely: `{fine,coarse,unlabeled}/train` and `fine/val`.

    The masks of `coarse` have the values of `COARSE_LABELS`, `COARSE_IGNORE` where two of them meet, and names that end
    in `COARSE_SUFFIX`. The images of `unlabeled` have none. `MIXED_IMAGES` says how many there are of each.

    Args:
        folder: Where to write; it must not have these folders yet.
        seed: Determines every pixel.
    """
    number = 0
    for kind in ("fine", "coarse", "unlabeled"):
        for _ in range(MIXED_IMAGES[kind]):
            _write_scene(folder / kind / "train", (seed, 0, number), masks=kind)
            number += 1
    for number in range(MIXED_IMAGES["val"]):
        _write_scene(folder / "fine" / "val", (seed, 1, number))


def _write_scene(folder: Path, seed: tuple[int, int, int], masks: str = "fine") -> None:
    """Write `images/NNN.jpg` and, for "fine" or "coarse" masks, its mask; NNN is the last number of the seed."""
    image, mask = _render_scene(np.random.default_rng(seed))
    files = [(folder / "images" / f"{seed[-1]:03}.jpg", image, {"quality": 92, "subsampling": 0})]
    if masks == "fine":
        files.append((folder / "masks" / f"{seed[-1]:03}.png", mask, {}))
    elif masks == "coarse":
        files.append((folder / "masks" / f"{seed[-1]:03}{COARSE_SUFFIX}.png", _coarse(mask), {}))
    for path, array, options in files:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path, **options)


def _coarse(mask: np.ndarray) -> np.ndarray:
    """The mask in the values of `COARSE_LABELS`, with a line of ignored pixels, 2 px wide, where they change."""
    coarse = _COARSE_VALUES[mask]
    changes = np.zeros(mask.shape, dtype=bool)
    for now, rest in (((slice(1, None),), (slice(None, -1),)), ((..., slice(1, None)), (..., slice(None, -1)))):
        differs = coarse[now] != coarse[rest]
        changes[now] |= differs
        changes[rest] |= differs
    return np.where(changes, COARSE_IGNORE, coarse).astype(np.uint8)


def _render_scene(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One scene: its image, H,W,3 uint8 RGB, and its mask, H,W uint8 positions in `LABELS`."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float64)
    image, mask = _sky(rng, y, x), np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    horizon = HEIGHT * rng.uniform(0.22, 0.42) + _wave(rng, x, 5)
    grounds = [_grass, _water, _sand]
    order = rng.permutation(3)[: rng.integers(2, 4)]
    tops = [horizon + (HEIGHT - horizon) * part + _wave(rng, x, 5) * (part > 0) for part in _parts(rng, len(order))]
    for choice, top in zip(order, tops, strict=True):
        _blend(image, mask, top - y, grounds[choice](rng, y, x, horizon), 1 + int(choice))
    for cy, cx, radius in _places(rng, int(rng.integers(3, 6))):
        kind = int(rng.integers(len(_SHAPES)))
        angle = rng.uniform(0, 2 * np.pi)
        u = ((x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)) / radius
        v = ((y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)) / radius
        # A soft shadow to the lower right; it belongs to no class.
        shadow = np.clip(1.25 - np.hypot(x - cx - 3, y - cy - 4) / radius, 0, 0.35)
        image *= 1 - shadow[..., None]
        distance, paint = _SHAPES[kind]
        color = _SHAPE_COLORS[(kind + int(rng.random() < 0.3)) % len(_SHAPE_COLORS)]  # a third get another color
        light = 1.0 - 0.28 * np.clip(((x - cx) + (y - cy)) / radius / 1.4, -1, 1)
        _blend(image, mask, distance(u, v) * radius, paint(rng, color, u, v, light), 4 + kind)
    image += rng.normal(0, 0.012, image.shape)
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8), mask


def _blend(image: np.ndarray, mask: np.ndarray, distance: _Field, paint: np.ndarray, label: int) -> None:
    """Paint where the signed distance (px) is negative, with an edge one pixel wide."""
    alpha = np.clip(0.5 - distance, 0, 1)[..., None]
    image += alpha * (paint - image)
    mask[distance < 0] = label


def _parts(rng: np.random.Generator, count: int) -> list[float]:
    """Where the bands of ground begin, as fractions of the distance from the horizon to the bottom."""
    return [(i + rng.uniform(-0.12, 0.12)) / count if i else 0.0 for i in range(count)]


def _places(rng: np.random.Generator, count: int) -> list[tuple[float, float, float]]:
    """Up to `count` circles (y, x, radius in px) that overlap little and lie mostly inside the image."""
    places: list[tuple[float, float, float]] = []
    for _ in range(40):
        y, x, r = rng.uniform(18, HEIGHT - 14), rng.uniform(12, WIDTH - 12), rng.uniform(17, 26)
        if all(np.hypot(y - py, x - px) > 0.9 * (r + pr) for py, px, pr in places):
            places.append((y, x, r))
        if len(places) == count:
            break
    return places


def _noise(rng: np.random.Generator, cell_y: float, cell_x: float) -> _Field:
    """Smooth noise in 0..1 from two octaves, with blobs of about `cell_y` by `cell_x` px."""
    total = np.zeros((HEIGHT, WIDTH))
    for octave, weight in ((1, 0.65), (2, 0.35)):
        rows, columns = max(2, round(HEIGHT * octave / cell_y)), max(2, round(WIDTH * octave / cell_x))
        coarse = Image.fromarray(rng.random((rows, columns), dtype=np.float32))
        total += weight * np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    return total


def _wave(rng: np.random.Generator, x: _Field, height: float) -> _Field:
    one, two = rng.uniform(0, 2 * np.pi, 2)
    return height * (np.sin(x / rng.uniform(18, 30) + one) + 0.5 * np.sin(x / rng.uniform(7, 12) + two)) / 1.5


def _mix(a: np.ndarray, b: np.ndarray, t: _Field) -> np.ndarray:
    return a + (b - a) * t[..., None]


def _tint(rng: np.random.Generator, rgb: _Color, spread: float = 0.06) -> np.ndarray:
    return np.array(rgb) + rng.uniform(-spread, spread, 3)


def _sky(rng: np.random.Generator, y: _Field, x: _Field) -> np.ndarray:
    tops = [(0.24, 0.49, 0.83), (0.36, 0.36, 0.68), (0.45, 0.62, 0.80)]
    lows = [(0.77, 0.89, 0.97), (0.99, 0.74, 0.58), (0.94, 0.90, 0.80)]
    mood = rng.integers(3)
    air = _mix(_tint(rng, tops[mood]), _tint(rng, lows[mood]), np.clip(y / 55, 0, 1))
    clouds = np.clip((_noise(rng, 22, 52) - 0.52) * 4.5, 0, 0.9)
    return _mix(air, np.array([1.0, 0.98, 0.96]), clouds)


def _grass(rng: np.random.Generator, y: _Field, x: _Field, horizon: _Field) -> np.ndarray:
    blades = 0.6 * _noise(rng, 7, 2.2) + 0.4 * _noise(rng, 26, 34)
    dark, light = _GRASS_COLORS[rng.integers(len(_GRASS_COLORS))]
    return _mix(_tint(rng, dark), _tint(rng, light), np.clip(blades * 1.6 - 0.3, 0, 1))


def _water(rng: np.random.Generator, y: _Field, x: _Field, horizon: _Field) -> np.ndarray:
    depth = np.clip((y - horizon) / 90, 0, 1)
    ripples = np.sin(y * rng.uniform(0.9, 1.2) + 4 * _noise(rng, 14, 40) + 0.6 * np.sin(x / 6)) * 0.5 + 0.5
    far, near = _WATER_COLORS[rng.integers(len(_WATER_COLORS))]
    base = _mix(_tint(rng, far), _tint(rng, near), depth)
    return _mix(base, np.array([0.90, 0.94, 0.95]), 0.42 * ripples**3)


def _sand(rng: np.random.Generator, y: _Field, x: _Field, horizon: _Field) -> np.ndarray:
    slope = rng.uniform(-0.5, 0.5)
    dunes = np.sin((y + slope * x) / rng.uniform(3.5, 5) + 5 * _noise(rng, 40, 40)) * 0.5 + 0.5
    dark, light = _SAND_COLORS[rng.integers(len(_SAND_COLORS))]
    base = _mix(_tint(rng, dark), _tint(rng, light), 0.35 + 0.4 * dunes)
    return base + rng.normal(0, 0.055, y.shape)[..., None]


def _paint_disc(rng: np.random.Generator, color: _Color, u: _Field, v: _Field, light: _Field) -> np.ndarray:
    """A glossy ball: bright in the middle, dark at the rim."""
    base = _tint(rng, color)
    round_ = np.clip(1.15 - 0.6 * (u * u + v * v), 0.3, 1.2) * light
    return _mix(base * round_[..., None], np.ones(3), 0.75 * np.exp(-((u + 0.3) ** 2 + (v + 0.3) ** 2) / 0.03))


def _paint_ring(rng: np.random.Generator, color: _Color, u: _Field, v: _Field, light: _Field) -> np.ndarray:
    """A life belt: two colors alternate around the center."""
    base = _tint(rng, color)
    turns = (np.sin(6 * np.arctan2(v, u)) > 0).astype(np.float64)
    return _mix(base, np.array([0.97, 0.96, 0.92]), turns) * light[..., None]


def _paint_brick(rng: np.random.Generator, color: _Color, u: _Field, v: _Field, light: _Field) -> np.ndarray:
    """Rows of bricks in pale mortar, each row shifted by half a brick."""
    base = _tint(rng, color)
    row = np.floor(v * 3.2)
    mortar = (np.mod(v * 3.2, 1) < 0.2) | (np.mod(u * 1.7 + 0.5 * row, 1) < 0.12)
    return _mix(base, np.array([0.90, 0.87, 0.80]), mortar.astype(np.float64)) * light[..., None]


def _paint_triangle(rng: np.random.Generator, color: _Color, u: _Field, v: _Field, light: _Field) -> np.ndarray:
    """Canvas: stripes of two colors."""
    base = _tint(rng, color)
    stripes = (np.sin(u * 11) > 0).astype(np.float64)
    return _mix(base, np.array([0.97, 0.90, 0.66]), stripes) * light[..., None]


def _paint_star(rng: np.random.Generator, color: _Color, u: _Field, v: _Field, light: _Field) -> np.ndarray:
    """A folded star: each arm has a bright half and a dark half."""
    base = _tint(rng, color)
    fold = np.where(np.sin(5 * np.arctan2(v, u)) > 0, 1.08, 0.66)
    return np.broadcast_to(base, (*u.shape, 3)) * (fold * light)[..., None]


def _star_distance(u: _Field, v: _Field) -> _Field:
    """Signed distance to a star with five arms, folded onto one half of an arm; negative inside."""
    angle = np.abs(np.mod(np.arctan2(v, u), 2 * np.pi / 5) - np.pi / 5)  # 0 between arms, pi/5 at a tip
    radius = np.hypot(u, v)
    tip = 1.18 * np.array([np.cos(np.pi / 5), np.sin(np.pi / 5)])
    edge = tip - np.array([0.56, 0.0])
    normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
    return normal[0] * (radius * np.cos(angle) - 0.56) + normal[1] * radius * np.sin(angle)


_SHAPES: tuple[tuple[Callable[[_Field, _Field], _Field], Callable[..., np.ndarray]], ...] = (
    (lambda u, v: np.hypot(u, v) - 0.9, _paint_disc),
    (lambda u, v: np.abs(np.hypot(u, v) - 0.72) - 0.27, _paint_ring),
    (lambda u, v: np.maximum(np.abs(u) - 0.92, np.abs(v) - 0.72), _paint_brick),
    (lambda u, v: np.maximum(np.abs(u) * 0.866 + v * 0.5, -v) - 0.58, _paint_triangle),
    (_star_distance, _paint_star),
)
"""Signed distance (in radii) and paint function of each shape, in the order of `LABELS[4:]`."""
