"""Work and memory of losses, decoding and metrics grow at most linearly in pixels x nodes; counted exactly."""

from __future__ import annotations

import gc
import math
from dataclasses import replace

import pytest
import torch

from seghiero_core.benchmarking.memory import peak_allocated
from support.scripts import script
from support.work import work

growth = script("growth")
CPU = torch.device("cpu")
BASE = growth.Setting(size=16, batch=1, leaves=64, depth=3)
NAMES = [*(f"loss {name}" for name in growth.LOSSES), *(f"decode {mode}" for mode in growth.MODES), "metrics"]
# Up to 512 samples per batch, windows at the edge, and a border whose width is a share of the image's diagonal.
SLACK = {"loss tree_triplet": 1.1, "loss region_mutual_information": 1.1, "metrics": 1.1}


@pytest.fixture(scope="module", autouse=True)
def _quick_collections():
    """`peak_allocated` collects garbage, which takes a tenth of a second for all that is imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def cost(name: str, setting: growth.Setting) -> tuple[int, int]:
    """Work, and peak memory in bytes."""
    run = growth.parts(setting, name)[name]
    run()  # tables of the tree are built once
    return work(run), peak_allocated(run, CPU)


@pytest.mark.parametrize(
    ("name", "axis", "values"),
    [
        *((name, "size", (64, 128)) for name in NAMES),
        *((name, "batch", (2, 4)) for name in ("loss marginal_cross_entropy", "decode leaf", "metrics")),
    ],
)
def test_growth_with_the_images(name, axis, values):
    settings = [replace(BASE, leaves=16, **{axis: value}) for value in values]
    less, more = (cost(name, setting) for setting in settings)
    factor = growth.amount(settings[1], axis) / growth.amount(settings[0], axis)
    slack = SLACK.get(name, 1.03)
    assert more[0] <= factor * less[0] * slack and more[1] <= factor * less[1] * slack


@pytest.mark.parametrize(("axis", "values"), [("leaves", (64, 256)), ("depth", (3, 8))])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "loss tree_triplet"])
def test_growth_with_the_tree(name, axis, values):
    """What a pixel costs; tables of the tree, such as the confusions of leaves, cost the same for any image."""
    amounts, per_pixel = [], []
    for value in values:
        small = replace(BASE, **{axis: value})
        large = replace(small, size=2 * BASE.size)
        amounts.append(growth.amount(small, axis))
        per_pixel.append([more - less for more, less in zip(cost(name, large), cost(name, small), strict=True)])
    steps = math.log(amounts[1] / amounts[0])
    operations, memory = (math.log(many / few) / steps for few, many in zip(*per_pixel, strict=True))
    assert operations <= 1.1 and memory <= 1.1


def test_quadratic_work_would_be_seen():
    found = []
    for side in (64, 128):
        a = torch.rand(side, side)
        found.append((work(lambda a=a: a @ a), peak_allocated(lambda a=a: a[:, None] * a[None], CPU)))
    (operations, memory), (more_operations, more_memory) = found
    assert more_operations > 6 * operations and more_memory == 8 * memory


def test_a_tree_has_nodes_in_proportion_to_leaves_and_depth():
    assert [len(growth.make_tree(leaves, 3)) for leaves in (100, 200, 1000)] == [150, 300, 1500]
    assert [len(growth.make_tree(64, depth)) for depth in (1, 2, 5, 8)] == [64, 80, 128, 176]
    assert len(growth.make_tree(64, 8).levels) == 8


def test_exponents_are_slopes_of_the_last_three_values():
    points = [
        {"part": "x", "axis": "size", "value": value, "amount": value**2, "ms": value**3.0, "mib": value**2.0}
        for value in (4, 2, 8)
    ]
    points.append({**points[0], "value": 1, "amount": 1, "ms": 100.0})
    (found,) = growth.exponents(points)
    assert found == {"part": "x", "axis": "size", "time": pytest.approx(1.5), "memory": pytest.approx(1)}
