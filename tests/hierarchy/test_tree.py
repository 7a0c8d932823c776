"""The class tree against a brute-force walk over nested dicts, and its faults."""

from __future__ import annotations

import numpy as np
import pytest

from seghiero_core.errors import ConfigError
from seghiero_core.hierarchy.tree import IGNORE_INDEX, Hierarchy
from support.trees import CAMVID

SHOES = {"labels": {3: "shoes", 7: "boots", 9: "hat", 2: "flats"}, "tree": {"shoes": ["flats", "boots"], "hat": None}}


def test_camvid_levels_align_at_the_root():
    hierarchy = Hierarchy.from_config(CAMVID)
    assert hierarchy.leaves == tuple(CAMVID["labels"])
    assert hierarchy.nodes[11:] == ("structure", "ground", "human", "static", "moving")
    assert [level.name for level in hierarchy.levels] == ["leaf", "level1", "level2"]
    assert hierarchy.level_names(1) == ("sky", "structure", "ground", "tree", "car", "human")
    assert hierarchy.level_names(2) == ("static", "moving")
    assert hierarchy.leaf_to_level[1].tolist() == [0, 1, 1, 2, 2, 3, 1, 1, 4, 5, 5]


def test_a_label_at_an_inner_node_has_no_class_at_finer_levels():
    hierarchy = Hierarchy.from_config(SHOES)
    assert hierarchy.leaves == ("flats", "boots", "hat")  # in the order of their mask values
    assert hierarchy.nodes == ("flats", "boots", "hat", "shoes")
    assert hierarchy.node_to_level[:, 3].tolist() == [-1, 0]
    table = hierarchy.label_table()
    assert table[[3, 7, 9, 2]].tolist() == [3, 1, 2, 0]
    assert table[255] == IGNORE_INDEX
    assert table[0] == -2


def test_no_tree_is_one_flat_level():
    hierarchy = Hierarchy.from_config({"labels": ["a", "b"]})
    assert hierarchy.nodes == hierarchy.leaves == ("a", "b")
    assert len(hierarchy.levels) == 1


def paths(tree, above=()):
    for name, children in (tree if isinstance(tree, dict) else dict.fromkeys(tree)).items():
        yield name, (*above, name)
        if children:
            yield from paths(children, (*above, name))


@pytest.mark.parametrize(
    "classes", [CAMVID, SHOES, {"labels": list("abc"), "tree": {"x": {"y": {"z": ["a"]}}, "b": None, "c": None}}]
)
def test_tables_equal_brute_force(classes):
    hierarchy = Hierarchy.from_config(classes)
    path = dict(paths(classes["tree"]))
    deepest = max(map(len, path.values()))
    assert len(hierarchy.levels) == deepest
    for i, a in enumerate(hierarchy.nodes):
        assert hierarchy.depths[i] == len(path[a])
        assert [hierarchy.nodes[j] for j in hierarchy.ancestors(i)] == list(path[a][-2::-1])
        for j, b in enumerate(hierarchy.nodes):
            shared = len([1 for p, q in zip(path[a], path[b], strict=False) if p == q])
            assert hierarchy.distance[i, j] == len(path[a]) + len(path[b]) - 2 * shared
            assert hierarchy.covers[i, j] == (a in path[b])
        for level in range(deepest):
            depth = deepest - level
            own = hierarchy.node_to_level[level, i]
            if len(path[a]) >= depth:
                assert hierarchy.level_names(level)[own] == path[a][depth - 1]
            elif i < len(hierarchy.leaves):
                assert hierarchy.level_names(level)[own] == a
            else:
                assert own == -1


def test_arrays_are_read_only():
    hierarchy = Hierarchy.from_config(CAMVID)
    for array in (hierarchy.parents, hierarchy.covers, hierarchy.distance, hierarchy.leaf_to_level, hierarchy.colors):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_large_ragged_tree_is_quick_and_right():
    labels = {2 * i: f"leaf{i}" for i in range(1000)}
    tree = {f"group{g}": [f"leaf{i}" for i in range(g, 1000, 40)] for g in range(40)}
    hierarchy = Hierarchy.from_config({"labels": labels, "tree": tree, "ignore": 65535})
    assert np.array_equal(hierarchy.leaf_to_level[1], np.arange(1000) % 40)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [*CAMVID["labels"], "dog"]}, "'dog' is missing from classes.tree"),
        ({"labels": [*CAMVID["labels"], "car"]}, "'car' is given twice"),
        ({"tree": {**CAMVID["tree"], "extra": ["cra"]}}, "the leaf 'cra' is no label. Did you mean 'car'?"),
        ({"tree": {**CAMVID["tree"], "extra": ["car"]}}, "'car' stands twice in the tree"),
        ({"tree": {"static": ["sky", "sky"]}}, "'sky' stands twice"),
        ({"ignore": 3}, "3 is also the mask value of 'road'"),
        ({"colors": {"roof": [1, 2, 3]}}, "'roof' is no class"),
        ({"colors": {"road": [1, 2]}}, "expected three whole numbers"),
    ],
)
def test_faults_are_named(change, message):
    with pytest.raises(ConfigError) as caught:
        Hierarchy.from_config({**CAMVID, **change})
    assert message in str(caught.value)


def test_all_faults_come_together():
    with pytest.raises(ConfigError) as caught:
        Hierarchy.from_config({"labels": ["a", "b", "b"], "tree": {"x": ["a", "c"]}, "ignore": 0})
    text = str(caught.value)
    assert all(part in text for part in ("'b' is given twice", "'c' is no label", "'b' is missing", "0 is also"))
