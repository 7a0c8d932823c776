"""The class tree against a brute-force walk over nested dicts, its faults, and targets from masks."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seghiero_core.errors import ConfigError
from seghiero_core.hierarchy.tree import IGNORE_INDEX, Hierarchy
from support.trees import CAMVID, hierarchies

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
        ({"labels": [*CAMVID["labels"], "car"]}, "'car' is also the name of mask value 8"),
        (
            {"tree": {**CAMVID["tree"], "extra": ["cra"]}},
            "'cra' is neither a label nor a group with children. Did you mean 'car'?",
        ),
        ({"tree": {**CAMVID["tree"], "extra": ["car"]}}, "'car' is already at classes.tree.moving.car"),
        ({"tree": {"static": ["sky", "sky"]}}, "'sky' is already at classes.tree.static.0"),
        ({"ignore": 3}, "3 is also the mask value of 'road'"),
        ({"colors": {"roof": [1, 2, 3]}}, "'roof' is not a class"),
        ({"colors": {"road": [1, 2]}}, "expected [R, G, B] from 0 to 255"),
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
    assert all(
        part in text for part in ("'b' is also the name", "'c' is neither a label", "'b' is missing", "0 is also")
    )


DTYPES = [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64]


@settings(derandomize=True, max_examples=25, deadline=None)
@given(hierarchy=hierarchies(), seed=st.integers(0, 2**16), dtype=st.sampled_from(DTYPES))
def test_targets_equal_a_dictionary(hierarchy, seed, dtype):
    node_of = {**hierarchy.values, hierarchy.ignore: IGNORE_INDEX}
    values = [value for value in node_of if value <= np.iinfo(dtype).max]
    if not values:
        return
    mask = np.random.default_rng(seed).choice(values, size=(2, 5, 7)).astype(dtype)
    expected = [[[node_of[int(value)] for value in row] for row in image] for image in mask]
    target = hierarchy.to_target(mask)
    assert isinstance(target, np.ndarray) and target.dtype == np.int64
    assert target.tolist() == expected
    assert hierarchy.to_target(mask[0]).tolist() == expected[0]
    from_tensor = hierarchy.to_target(torch.from_numpy(mask))
    assert isinstance(from_tensor, torch.Tensor) and from_tensor.dtype == torch.int64
    assert from_tensor.tolist() == expected


@pytest.mark.parametrize(
    ("values", "unknown"), [([3, 0, 1], "0, 1"), ([-1, 3, 255], "-1"), ([256, 300, 2**31 - 1], "256, 300, 2147483647")]
)
@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_values_that_are_not_labels_are_named(values, unknown, kind):
    with pytest.raises(ValueError, match=rf"values that are not labels: {unknown}\. Labels are 2, 3, 7, 9, and 255 is"):
        Hierarchy.from_config(SHOES).to_target(kind([values]))


def test_an_empty_mask_is_an_empty_target():
    assert Hierarchy.from_config(SHOES).to_target(np.zeros((0, 4, 4), dtype=np.uint8)).shape == (0, 4, 4)


def test_a_mask_that_is_not_of_integers():
    for mask in (np.zeros((2, 2)), torch.zeros(2, 2), np.zeros((2, 2), dtype=bool)):
        with pytest.raises(ValueError, match="expected a mask of integers, found"):
            Hierarchy.from_config(SHOES).to_target(mask)


def test_targets_of_arrays_need_no_torch():
    code = (
        "import sys, numpy; from seghiero_core.hierarchy import Hierarchy;"
        "assert Hierarchy.from_config({'preset': 'camvid'}).to_target(numpy.array([[3, 255]])).tolist() == [[3, -1]];"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
