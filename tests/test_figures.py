"""Drawing: class colors, and where each panel and legend of a grid is."""

from __future__ import annotations

import numpy as np
import pytest

from seghiero_core import figures
from seghiero_core.figures import colorize, prediction_grid, truth_at_level
from seghiero_core.hierarchy.tree import IGNORE_INDEX, Hierarchy


def test_colorize_uses_class_colors_and_hatches_the_ignored(ragged):
    for level, entry in enumerate(ragged.levels):
        ids = np.arange(len(entry.nodes))[None]
        assert np.array_equal(colorize(ids, level, ragged)[0], ragged.colors[list(entry.nodes)])
    hatch = colorize(np.full((16, 16), -1), 0, ragged)
    assert set(np.unique(hatch)) == {figures.HATCH_DARK, figures.HATCH_LIGHT}
    assert (hatch == hatch[..., :1]).all() and hatch.dtype == np.uint8


def test_truth_at_level_by_hand(ragged):
    """sky, boots, flats, hat, shoes (inner), clothes (inner), ignored; levels number as their `nodes` do."""
    target = np.array([ragged.index_of(n) for n in ["sky", "boots", "flats", "hat", "shoes"]] + [IGNORE_INDEX])

    def names(level):
        ids = truth_at_level(target, level, ragged)
        return [ragged.level_names(level)[i] if i >= 0 else None for i in ids]

    assert names(0) == ["sky", "boots", "flats", "hat", None, None]
    assert names(1) == ["sky", "shoes", "shoes", "hat", "shoes", None]
    assert names(2) == ["sky", "clothes", "clothes", "clothes", "clothes", None]


def scene(hierarchy, shape, seed=0):
    rng = np.random.default_rng(seed)
    target = np.kron(rng.integers(0, len(hierarchy.leaves), (2, 3)), np.ones((shape[0] // 2, shape[1] // 3), dtype=int))
    leaves = np.roll(target, 1, axis=1)
    return (
        rng.integers(0, 256, (*target.shape, 3), dtype=np.uint8),
        target,
        [hierarchy.leaf_to_level[level][leaves] for level in range(len(hierarchy.levels))],
    )


def test_grid_shows_each_panel_where_its_column_is(ragged):
    image, target, prediction = scene(ragged, (20, 30))
    target[:4, :6] = IGNORE_INDEX
    width = 30  # the images' own width, so that panels are not scaled and can be compared pixel by pixel
    grid = np.asarray(prediction_grid([image], [target], [prediction], ragged, cell_width=width))
    top = figures.MARGIN + 2 * figures.LINE
    assert np.array_equal(grid[top : top + 20, figures.MARGIN : figures.MARGIN + width], image)
    left = figures.MARGIN + width
    for level in range(3):
        left += figures.GROUP_GAP
        for ids in (truth_at_level(target, level, ragged), prediction[level]):
            assert np.array_equal(grid[top : top + 20, left : left + width], colorize(ids, level, ragged))
            left += width + figures.GAP
        left -= figures.GAP
    assert grid.shape[1] == left + figures.MARGIN


def test_legend_has_the_colors_of_the_classes_shown_and_no_others(ragged):
    image, target, prediction = scene(ragged, (20, 30))
    target[:] = ragged.index_of("sky")
    boots = ragged.leaf_to_level[:, ragged.index_of("boots")]
    prediction = [np.full((20, 30), boots[level]) for level in range(3)]
    grid = np.asarray(prediction_grid([image], [target], [prediction], ragged, cell_width=150))
    below = grid[figures.MARGIN + 2 * figures.LINE + 100 + figures.GAP :].reshape(-1, 3)

    def squares(name):
        return int((below == ragged.colors[ragged.index_of(name)]).all(axis=1).sum()) // (figures.CHIP - 1) ** 2

    assert [squares(name) for name in ("sky", "boots", "shoes", "clothes", "flats", "hat")] == [3, 1, 1, 1, 0, 0]


def test_sizes_may_differ_and_captions_take_room(ragged):
    rows = [scene(ragged, shape, seed) for seed, shape in enumerate([(20, 30), (40, 30), (10, 300)])]
    images, targets, predictions = (list(column) for column in zip(*rows, strict=True))
    plain = prediction_grid(images, targets, predictions, ragged, cell_width=60)
    named = prediction_grid(images, targets, predictions, ragged, cell_width=60, captions=["à.jpg", "β.jpg", "c.jpg"])
    assert named.width == plain.width and named.height - plain.height == 3 * (figures.LINE - figures.GAP)


def test_a_long_caption_keeps_its_end():
    assert figures.fit_text("a.jpg", 300) == "a.jpg"
    cut = figures.fit_text(f"{'folder/' * 20}frame-1234.jpg", 300)
    assert cut.startswith("…") and cut.endswith("frame-1234.jpg")
    assert figures.load_font(figures.TEXT - 2).getlength(cut) <= 300


@pytest.mark.parametrize("count", [figures.LEGEND_LIMIT, 500])
def test_a_long_legend_is_wrapped_and_cut(count):
    hierarchy = Hierarchy.from_config({"labels": [f"class {i}" for i in range(count)], "ignore": 65535})
    ids = np.arange(count).reshape(-1, 10)
    image = np.zeros((*ids.shape, 3), dtype=np.uint8)
    grid = prediction_grid([image], [ids], [[ids]], hierarchy, cell_width=100)
    legend = figures._classes_shown([ids], 0, hierarchy)
    assert len(legend) == figures.LEGEND_LIMIT + (count > figures.LEGEND_LIMIT)
    lines = figures._flow(legend, grid.width - 2 * figures.MARGIN)
    ends = [
        left + figures.CHIP + 6 + figures.load_font(figures.TEXT).getlength(name)
        for line in lines
        for left, name, _ in line
    ]
    assert len(lines) > 1 and max(ends) <= grid.width - 2 * figures.MARGIN
