"""Automatic colors show the tree, and siblings differ for every kind of vision."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seghiero_core.hierarchy.colors import assign_colors, perceived
from seghiero_core.hierarchy.presets import preset_names
from seghiero_core.hierarchy.tree import Hierarchy
from support.trees import hierarchies

RED_GREEN_BLUE = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


def hue(colors):
    lab = perceived(np.array(colors))[0]
    return np.degrees(np.arctan2(lab[..., 2], lab[..., 1]))


def apart(a, b):
    return abs((a - b + 180) % 360 - 180)


def least_distance(colors):
    """Between two colors, in the kind of vision in which they are most alike."""
    lab = perceived(np.array(colors))
    distance = np.linalg.norm(lab[:, :, None] - lab[:, None], axis=-1).min(axis=0)
    return distance[~np.eye(len(colors), dtype=bool)].min()


def enough(siblings):
    """What siblings must differ by: a just noticeable difference is 2.3."""
    return min(12, 100 / siblings)


def families(hierarchy):
    inner = [node for node in range(len(hierarchy)) if hierarchy.children(node)]
    return [(node, hierarchy.children(node)) for node in (-1, *inner)]


def test_lab_and_the_simulation_agree_with_published_values():
    normal, protan, deutan = perceived(np.array([*RED_GREEN_BLUE, (119, 119, 119)]))
    expected = [(53.24, 80.09, 67.20), (87.73, -86.18, 83.18), (32.30, 79.19, -107.86), (50.03, 0, 0)]
    np.testing.assert_allclose(normal, expected, atol=0.1)
    for seen in (protan, deutan):
        np.testing.assert_allclose(seen[3], expected[3], atol=0.1)  # gray stays gray
        assert abs(seen[:2, 1]).max() < 25 < abs(normal[:2, 1]).min()  # red and green lose what sets them apart


@pytest.mark.parametrize("name", preset_names())
@pytest.mark.parametrize("published", [False, True])
def test_siblings_of_presets_can_be_told_apart(name, published):
    """With the published colors only those of the inner nodes are automatic."""
    hierarchy = Hierarchy.from_config({"preset": name} if published else {"preset": name, "colors": None})
    automatic = range(len(hierarchy.leaves) if published else 0, len(hierarchy))
    for _, children in families(hierarchy):
        colors = [hierarchy.colors[node] for node in children if node in automatic]
        if len(colors) > 1:
            assert least_distance(colors) >= enough(len(colors)), [hierarchy.nodes[node] for node in children]
    if not published:
        assert len(np.unique(hierarchy.colors, axis=0)) == len(hierarchy)


@settings(derandomize=True, max_examples=40, deadline=None)
@given(hierarchy=hierarchies(max_leaves=16, max_depth=4))
def test_siblings_differ_and_children_have_their_parents_hue(hierarchy):
    for parent, children in families(hierarchy):
        colors = hierarchy.colors[list(children)]
        if len(children) > 1:
            assert least_distance(colors) >= enough(len(children))
        if parent >= 0:
            assert apart(hue(colors), hue(hierarchy.colors[parent])).max() <= 25
        elif len(children) > 1:
            hues = np.sort(hue(colors))
            assert np.diff(hues, append=hues[0] + 360).min() >= 120 / len(children) - 0.01


@settings(derandomize=True, max_examples=60, deadline=None)
@given(color=st.tuples(*[st.integers(0, 255)] * 3), count=st.integers(2, 30))
def test_a_parent_of_any_color_has_children_that_differ(color, count):
    children = {f"c{i}": {} for i in range(count)}
    colors = assign_colors({"parent": children}, {"parent": color})
    assert colors["parent"] == color
    assert least_distance([colors[name] for name in children]) >= enough(count)


def test_automatic_colors_are_calm_where_few_are_needed():
    hierarchy = Hierarchy.from_config({"labels": [f"c{i}" for i in range(6)]})
    lab = perceived(hierarchy.colors)[0]
    assert np.hypot(lab[:, 1], lab[:, 2]).max() <= 50 and 38 <= lab[:, 0].min() <= lab[:, 0].max() <= 84


def test_a_parent_of_given_colors_takes_their_hue():
    tree = {"plant": {"tree": {}, "grass": {}}, "water": {"sea": {}}, "other": {}}
    given = {"tree": (0, 120, 0), "grass": (90, 200, 80), "sea": (0, 60, 200)}
    colors = assign_colors(tree, given)
    assert apart(hue(colors["plant"]), hue(given["tree"])) < 35 and apart(hue(colors["water"]), hue(given["sea"])) < 35
    assert {name: colors[name] for name in given} == given


def test_a_flat_list_of_a_thousand_classes_has_colors():
    colors = Hierarchy.from_config({"labels": [f"c{i}" for i in range(1000)], "ignore": 65535}).colors
    assert len(np.unique(colors, axis=0)) >= 256
