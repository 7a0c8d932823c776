"""Label counts of images and of whole steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seghiero_core.hierarchy.tree import IGNORE_INDEX, Hierarchy
from seghiero_core.losses.reductions import label_counts, whole_step
from support.trees import hierarchies, random_target

few = settings(derandomize=True, max_examples=15, deadline=None)
LABELS = dict(enumerate([*"abcdef", "x", ["a", "b"], ["d", "f"]]))
HIERARCHY = Hierarchy.from_config({"labels": LABELS, "tree": {"x": ["a", "b", "c"], "y": {"z": ["d", "e"]}, "f": None}})


@few
@given(hierarchy=hierarchies(sets=True), seed=st.integers(0, 2**16), ignore_index=st.sampled_from([IGNORE_INDEX, 255]))
def test_label_counts(hierarchy, seed, ignore_index):
    torch.manual_seed(seed)
    target = random_target(hierarchy, 3, 5, 7)
    counts = label_counts(target.where(target != IGNORE_INDEX, ignore_index), hierarchy, ignore_index=ignore_index)
    size = len(hierarchy.label_nodes) + 1
    expected = [np.bincount(image.ravel() % size, minlength=size) for image in target.numpy()]  # -1 % size is the last
    np.testing.assert_array_equal(counts, expected)
    assert torch.equal(whole_step(counts, target, hierarchy, sets=True), counts)


@pytest.mark.parametrize("size", [(0, 4, 4), (2, 0, 4)])
def test_no_pixels(size):
    counts = label_counts(torch.zeros(size, dtype=torch.int64), HIERARCHY)
    assert counts.shape == (size[0], len(HIERARCHY.label_nodes) + 1) and counts.sum() == 0


def test_without_sets_they_count_as_their_lowest_common_ancestor():
    nodes = len(HIERARCHY)
    target = torch.tensor([[[0, nodes, nodes + 1, nodes + 1, IGNORE_INDEX]]])
    label = torch.tensor([[[0, HIERARCHY.index_of("x"), nodes, nodes, nodes]]])
    of_label = whole_step(None, label, HIERARCHY)
    assert of_label[0, [0, HIERARCHY.index_of("x"), nodes]].tolist() == [1, 1, 3] and of_label.shape == (1, nodes + 1)
    assert torch.equal(whole_step(label_counts(target, HIERARCHY), label, HIERARCHY), of_label)


def test_counts_of_another_hierarchy_are_refused():
    label = torch.zeros(1, 2, 2, dtype=torch.int64)
    for wrong in (torch.zeros(1, 5, dtype=torch.int64), torch.zeros(12, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"counts: expected shape \(I,12\), one column per label .* label_counts"):
            whole_step(wrong, label, HIERARCHY)
