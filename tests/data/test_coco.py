"""Drawing COCO's annotations: against pycocotools, and polygons against centers of pixels."""

from __future__ import annotations

import builtins
from collections import Counter

import numpy as np
import pytest
from pycocotools import mask as coder

from seghiero_core.data.coco import coco_mask, fill_polygon
from seghiero_core.errors import UsageError
from support.annotations import polygons_of, runs_of

HEIGHT, WIDTH = 37, 53


def random_mask(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 9))
    return np.kron(rng.random((HEIGHT // size + 1, WIDTH // size + 1)) < rng.random(), np.ones((size, size)))[
        :HEIGHT, :WIDTH
    ].astype(bool)


def drawn(segmentation, **changes) -> np.ndarray:
    annotation = {"id": 1, "category_id": 3, "segmentation": segmentation, **changes}
    return coco_mask([annotation], HEIGHT, WIDTH, {3: 7}, 255, background=0)


@pytest.mark.parametrize("seed", range(20))
def test_run_lengths_are_those_of_pycocotools(seed):
    mask = random_mask(seed)
    encoded = coder.encode(np.asfortranarray(mask.astype(np.uint8)))
    text = {"size": [HEIGHT, WIDTH], "counts": encoded["counts"].decode()}
    for segmentation in (text, runs_of(mask)):
        assert (drawn(segmentation) == 7 * mask).all()


@pytest.mark.parametrize("seed", range(20))
def test_polygons_along_the_edges_of_pixels_are_exact(seed):
    mask = random_mask(seed)
    polygons = polygons_of(mask)
    assert (drawn([[p for xy in ring for p in xy] for ring in polygons]) == 7 * mask).all() or not polygons
    filled = np.zeros_like(mask)
    for ring in polygons:
        filled |= fill_polygon(ring, HEIGHT, WIDTH)
    assert (filled == mask).all()


@pytest.mark.parametrize("seed", range(10))
def test_pixels_belong_to_a_polygon_if_their_center_lies_inside(seed):
    """Except within a fifth of a pixel of its border, the grid that pycocotools calculates on."""
    rng = np.random.default_rng(seed)
    corners = rng.random((3, 2)) * [WIDTH, HEIGHT]
    centers = np.stack(np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT)), -1) + 0.5
    edges = np.roll(corners, -1, 0) - corners
    across = np.stack([edges[:, 1], -edges[:, 0]], 1) / np.linalg.norm(edges, axis=1)[:, None]
    distance = ((centers[:, :, None] - corners) * across).sum(-1)
    inside = (distance > 0).all(-1) | (distance < 0).all(-1)
    clear = (np.abs(distance) > 0.3).all(-1)
    assert (fill_polygon(corners.tolist(), HEIGHT, WIDTH) == inside)[clear].all()


def test_the_polygons_of_one_object_are_a_union():
    squares = [[0, 0, 6, 0, 6, 6, 0, 6], [4, 4, 9, 4, 9, 9, 4, 9]]
    assert (drawn(squares) == 7).sum() == 36 + 25 - 4


def test_small_objects_lie_over_large_ones_whatever_their_order():
    large = {"category_id": 1, "segmentation": [[0, 0, 20, 0, 20, 20, 0, 20]]}
    small = {"category_id": 2, "segmentation": [[5, 5, 8, 5, 8, 8, 5, 8]]}
    unknown = {"category_id": 9, "segmentation": [[30, 0, 32, 0, 32, 2, 30, 2]]}
    for order in ([large, small, unknown], [unknown, small, large]):
        counts: Counter[str] = Counter()
        mask = coco_mask(order, HEIGHT, WIDTH, {1: 10, 2: 20}, 99, background=0, counts=counts)
        assert dict(zip(*np.unique(mask, return_counts=True), strict=True)) == {0: 1961 - 404, 10: 391, 20: 9, 99: 4}
        assert counts["overlapping_pixels"] == 9 and counts["objects_without_label"] == 1 and counts["objects"] == 3
    assert (coco_mask([], 2, 3, {}, 99) == 99).all()


def test_crowds_lie_below_objects():
    crowd = np.zeros((HEIGHT, WIDTH), bool)
    crowd[:3, :3] = True
    annotations = [
        {"category_id": 3, "segmentation": [[0, 0, 50, 0, 50, 2, 0, 2]]},
        {"category_id": 3, "segmentation": runs_of(crowd), "iscrowd": 1},
    ]
    mask = coco_mask(annotations, HEIGHT, WIDTH, {3: 7}, 255, background=0)
    assert (mask[:2, :50] == 7).all() and (mask[2, :3] == 255).all() and (mask == 255).sum() == 3


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        ({"size": [HEIGHT, WIDTH], "counts": "abc"}, "end too early"),
        ({"size": [HEIGHT, WIDTH], "counts": "a€"}, "the character '€'"),
        ({"size": [HEIGHT, WIDTH], "counts": ""}, "cover 0 px"),
        ({"size": [HEIGHT, WIDTH], "counts": [-5, HEIGHT * WIDTH + 5]}, "expected run lengths"),
        ({"size": [HEIGHT, WIDTH], "counts": None}, "expected run lengths"),
        ({"size": 5, "counts": [1]}, "have the size 5"),
        ("abc", "expected a segmentation of polygons"),
        ([1, 2, 3, 4, 5, 6], "expected a segmentation of polygons"),
        ([[0, 0, 5, 0, 5, 5, 0]], "found 7 numbers"),
        ([[0, 0, float("nan"), 0, 5, 5]], "far outside the image"),
        ([[0, 0, 10**400, 0, 5, 5]], "annotation 1"),
        ([[0, 0, True, 0, 5, 5]], "found True"),
    ],
)
def test_damaged_annotations_are_named(segmentation, words):
    with pytest.raises(ValueError, match="annotation 1: ") as caught:
        drawn(segmentation)
    assert words in str(caught.value)


def test_without_pycocotools_only_polygons_are_refused(monkeypatch):
    real = builtins.__import__

    def refusing(name, *rest):
        if name.startswith("pycocotools"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refusing)
    mask = random_mask(3)
    assert (drawn(runs_of(mask)) == 7 * mask).all()
    with pytest.raises(UsageError, match=r"pip install 'seghiero\[coco\]'"):
        drawn([[0, 0, 5, 0, 5, 5]])
