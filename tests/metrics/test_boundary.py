"""Boundary IoU against cutting every class's region out and eroding it, as the paper's own code does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.metrics.boundary import boundary_band
from seghiero_core.metrics.metrics import Metrics
from support.trees import classes_of_levels, hierarchies, random_target

few = settings(derandomize=True, max_examples=15, deadline=None)


def eroded_away(region):
    """The pixels of a region that a square of 2 d + 1 px, d = 2 % of the diagonal, takes from it."""
    height, width = region.shape
    reach = max(1, round(0.02 * (height**2 + width**2) ** 0.5))
    padded = np.pad(region, reach)
    kept = np.ones_like(region)
    for dy in range(2 * reach + 1):
        for dx in range(2 * reach + 1):
            kept &= padded[dy : dy + height, dx : dx + width]
    return region & ~kept


@few
@given(
    seed=st.integers(0, 2**16),
    size=st.sampled_from([(1, 1), (1, 9), (7, 5), (60, 80), (130, 20)]),
    blocks=st.integers(1, 4),
)
def test_band_is_what_erosion_takes_from_each_class(seed, size, blocks):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 3, (2, blocks, blocks))
    rows, columns = (np.arange(length) * blocks // length for length in size)
    maps = coarse[:, rows[:, None], columns]
    band = boundary_band(torch.from_numpy(maps).short()).numpy()
    for classes, found in zip(maps, band, strict=True):
        expected = sum(eroded_away(classes == index) for index in range(3)) > 0
        assert np.array_equal(found, expected)


@few
@given(hierarchy=hierarchies(), seed=st.integers(0, 2**16))
def test_boundary_iou_of_every_level(hierarchy, seed):
    torch.manual_seed(seed)
    size = (2, 40, 50)
    target = random_target(hierarchy, 2, 5, 5).repeat_interleave(8, 1).repeat_interleave(10, 2)
    metrics, ids = Metrics(hierarchy), []
    for level in hierarchy.levels:
        ids.append(torch.randint(-1, len(level.nodes), (2, 8, 10)).repeat_interleave(5, 1).repeat_interleave(5, 2))
    for image in range(size[0]):  # batch by batch
        metrics.update([level_ids[image : image + 1] for level_ids in ids], target[image : image + 1])
    nodes_by_level = classes_of_levels(hierarchy)
    for number, level in enumerate(metrics.compute()["levels"]):
        nodes = hierarchy.levels[number].nodes
        positions = [-1 if node is None else nodes.index(node) for node in nodes_by_level[number]]
        truth = np.array([*positions, -1])[target.numpy()]
        ious = []
        for index, entry in enumerate(level["classes"]):
            common = either = 0
            for true_map, guess in zip(truth, ids[number].numpy(), strict=True):
                guess = np.where(true_map < 0, -2, guess)
                true_band, band = eroded_away(true_map == index), eroded_away(guess == index)
                common, either = common + (true_band & band).sum(), either + (true_band | band).sum()
            ious.append(common / either if either else None)
            assert entry["boundary_iou"] == (pytest.approx(ious[-1]) if either else None)
        known = [iou for iou in ious if iou is not None]
        assert level["boundary_miou"] == (pytest.approx(sum(known) / len(known)) if known else None)


def test_a_list_of_pixels_has_no_contours():
    hierarchy = Hierarchy.from_config({"labels": ["a", "b"]})
    metrics = Metrics(hierarchy)
    metrics.update(torch.tensor([0, 1]), torch.tensor([0, 0]))
    (level,) = metrics.compute()["levels"]
    assert level["miou"] == pytest.approx(0.25) and level["boundary_miou"] is None
