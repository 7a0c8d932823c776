"""Labels that are sets of leaves: what a list of names becomes, and what is known about it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from seghiero_core.errors import ConfigError
from seghiero_core.hierarchy.tree import IGNORE_INDEX, Hierarchy
from support.trees import classes_of_levels, hierarchies, hierarchies_agree

TREE = {"x": ["a", "b"], "y": {"z": ["c", "d"]}, "e": None}
LABELS = {0: "a", 1: "b", 2: "c", 7: "d", 9: "e"}


def built(**labels):
    return Hierarchy.from_config(
        {"labels": LABELS | {int(key[1:]): names for key, names in labels.items()}, "tree": TREE}
    )


def test_a_list_is_a_set_of_leaves_or_the_node_that_has_them():
    hierarchy = built(_3=["a", "c"], _4=["x", "e"], _5=["d", "c"], _6=["a", "b"], _7=["d"])
    assert hierarchy.leaves == ("a", "b", "c", "d", "e")
    names = {value: hierarchy.label_name(label) for value, label in hierarchy.values.items()}
    assert names == {0: "a", 1: "b", 2: "c", 9: "e", 3: "a or c", 4: "a or b or e", 5: "z", 6: "x", 7: "d"}
    assert hierarchy.sets == ((0, 2), (0, 1, 4))
    target = hierarchy.to_target(np.array([[3, 4, 5, 255]]))
    assert target.tolist() == [[len(hierarchy), len(hierarchy) + 1, hierarchy.index_of("z"), IGNORE_INDEX]]


def test_leaves_without_a_mask_value_of_their_own_come_last():
    tree = {"g": ["q", "p"], "h": ["o", "n"]}
    hierarchy = Hierarchy.from_config({"labels": {0: "p", 1: ["o", "q"], 2: "n", 3: ["p", "o"]}, "tree": tree})
    assert hierarchy.leaves == ("p", "n", "q", "o")
    covered = Hierarchy.from_config({"labels": {0: "p", 1: ["h", "p"], 2: "q"}, "tree": tree})
    assert covered.leaves == ("p", "q", "o", "n")
    flat = Hierarchy.from_config({"labels": {0: ["b", "a"], 1: "c", 2: ["a", "c"]}})
    assert flat.leaves == ("c", "b", "a") and flat.sets == ((1, 2), (0, 2))


@settings(derandomize=True, max_examples=30, deadline=None)
@given(hierarchy=hierarchies(sets=True))
def test_a_set_has_a_class_where_its_leaves_share_one(hierarchy):
    classes = classes_of_levels(hierarchy)
    for number, members in enumerate(hierarchy.sets):
        for level, found in zip(hierarchy.levels, hierarchy.label_to_level[:, len(hierarchy) + number], strict=True):
            position = hierarchy.levels.index(level)
            shared = {classes[position][leaf] for leaf in members}
            assert (level.nodes[found] if found >= 0 else None) == (shared.pop() if len(shared) == 1 else None)
    nodes = np.arange(len(hierarchy))
    assert np.array_equal(hierarchy.label_nodes[nodes], nodes)


def test_written_and_read_again():
    hierarchy = built(_3=["a", "c"], _4=["x", "e"])
    labels = {
        value: [hierarchy.nodes[leaf] for leaf in hierarchy.sets[label - len(hierarchy)]]
        if label >= len(hierarchy)
        else hierarchy.nodes[label]
        for value, label in hierarchy.values.items()
    }
    assert hierarchies_agree(hierarchy, Hierarchy.from_config({"labels": labels, "tree": hierarchy.tree}))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "rod"], r"classes.labels.3.1: 'rod' is missing from classes.tree"),
        (["a", "a"], r"classes.labels.3.1: 'a' is already in the list"),
        (["a", ["c"]], r"classes.labels.3.1: expected a name, found \['c'\]; a label is a name or a list of names"),
        (["a", 5], r"classes.labels.3.1: expected a name, found 5"),
        ([], r"classes.labels.3: expected a name, found \[\]"),
        (["a"], r"classes.labels.3: means the same as mask value 0, 'a'; remove one of them"),
    ],
)
def test_faults_name_the_place(names, message):
    with pytest.raises(ConfigError, match=message):
        built(_3=names)


def test_two_sets_of_the_same_leaves_are_refused():
    with pytest.raises(ConfigError, match="classes.labels.4: means the same as mask value 3, 'a or b or e'"):
        built(_3=["a", "b", "e"], _4=["e", "x"])
    with pytest.raises(ConfigError, match="classes.ignore: 3 is also the mask value of 'a or c'"):
        Hierarchy.from_config({"labels": LABELS | {3: ["a", "c"]}, "tree": TREE, "ignore": 3})
