"""The tree Wasserstein distance against flows over the edges of the tree, written out pixel by pixel."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seghiero_core.hierarchy.tree import IGNORE_INDEX, Hierarchy
from seghiero_core.losses.wasserstein import tree_wasserstein
from support.trees import CAMVID, hierarchies, paths, random_target

few = settings(derandomize=True, max_examples=25, deadline=None)
seeds = st.integers(0, 2**16)


def draw(hierarchy, seed):
    torch.manual_seed(seed)
    logits = torch.randn(2, len(hierarchy.leaves), 3, 4, dtype=torch.double) * 2
    return logits.requires_grad_(), random_target(hierarchy, 2, 3, 4)


def members(hierarchy, label):
    """The leaves that a label leaves open."""
    if label >= len(hierarchy):
        return sorted(hierarchy.sets[label - len(hierarchy)])
    return [leaf for leaf in range(len(hierarchy.leaves)) if label in paths(hierarchy)[leaf]]


def distance(p, q, hierarchy):
    """1-Wasserstein distance between distributions over leaves: what flows over each edge, the one above its node."""
    path = paths(hierarchy)
    below = [[leaf for leaf in range(len(p)) if node in path[leaf]] for node in range(len(path))]
    return sum((p[leaves].sum() - q[leaves].sum()).abs() for leaves in below)


def farthest(hierarchy):
    unit = torch.eye(len(hierarchy.leaves), dtype=torch.double)
    return max(float(distance(p, q, hierarchy)) for p in unit for q in unit) or 1.0


def nearest(p, open_leaves, hierarchy):
    """The distribution over `open_leaves` nearest to p: each leaf's probability moves to the nearest of them."""
    unit, q = torch.eye(len(p), dtype=p.dtype), torch.zeros_like(p)
    for leaf in range(len(p)):
        q[min(open_leaves, key=lambda other: float(distance(unit[leaf], unit[other], hierarchy)))] += p[leaf]
    return q


def brute_force(logits, target, hierarchy, class_weight):
    terms, weights = [], []
    for b, y, x in (target != IGNORE_INDEX).nonzero().tolist():
        p, open_leaves = logits[b, :, y, x].softmax(dim=0), members(hierarchy, int(target[b, y, x]))
        weights.append(float(class_weight[open_leaves].mean()))
        terms.append(weights[-1] * distance(p, nearest(p, open_leaves, hierarchy), hierarchy))
    return sum(terms, start=0 * logits.sum()) / (sum(weights) or 1) / farthest(hierarchy)


@few
@given(hierarchy=hierarchies(max_leaves=5, sets=True), seed=seeds)
def test_value_and_gradient_against_brute_force(hierarchy, seed):
    logits, target = draw(hierarchy, seed)
    class_weight = torch.rand(len(hierarchy.leaves), dtype=torch.double) + 0.1
    for weight in (None, class_weight):
        loss = tree_wasserstein(logits, target, hierarchy, class_weight=weight)
        expected = brute_force(logits, target, hierarchy, torch.ones_like(class_weight) if weight is None else weight)
        torch.testing.assert_close(loss, expected)
        (found,), (wanted,) = torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits)
        torch.testing.assert_close(found, wanted)


@few
@given(hierarchy=hierarchies(sets=True), seed=seeds)
def test_a_label_of_several_leaves_is_as_far_as_its_nearest_distribution(hierarchy, seed):
    torch.manual_seed(seed)
    label = int(torch.randint(len(hierarchy.label_nodes), ()))
    logits = torch.randn(1, len(hierarchy.leaves), 1, 1, dtype=torch.double) * 2
    loss = tree_wasserstein(logits, torch.full((1, 1, 1), label), hierarchy).item() * farthest(hierarchy)
    p, open_leaves = logits.flatten().softmax(dim=0), members(hierarchy, label)
    for _ in range(20):
        q = torch.zeros_like(p)
        q[open_leaves] = (3 * torch.randn(len(open_leaves), dtype=torch.double)).softmax(dim=0)
        assert loss <= distance(p, q, hierarchy) + 1e-9


@few
@given(hierarchy=hierarchies(sets=True), seed=seeds)
def test_gradient(hierarchy, seed):
    logits, target = draw(hierarchy, seed)
    assert torch.autograd.gradcheck(lambda z: tree_wasserstein(z, target, hierarchy), logits)


@few
@given(hierarchy=hierarchies(sets=True), seed=seeds)
def test_zero_only_where_all_probability_is_under_the_label(hierarchy, seed):
    torch.manual_seed(seed)
    leaf = int(torch.randint(len(hierarchy.leaves), ()))
    sure = torch.full((1, len(hierarchy.leaves), 1, 1), -1000.0)
    sure[0, leaf] = 1000.0
    for label in range(len(hierarchy.label_nodes)):
        loss = tree_wasserstein(sure, torch.full((1, 1, 1), label), hierarchy).item()
        assert (loss == 0) == (leaf in members(hierarchy, label)) and 0 <= loss <= 1


def test_the_farthest_leaves_are_at_1_and_siblings_nearer():
    hierarchy = Hierarchy.from_config(CAMVID)
    sure = torch.full((1, len(hierarchy.leaves), 1, 1), -1000.0)
    sure[0, hierarchy.index_of("pole")] = 1000.0
    far = {
        name: tree_wasserstein(sure, torch.full((1, 1, 1), hierarchy.index_of(name)), hierarchy).item()
        for name in ("pole", "structure", "fence", "road", "ground", "car", "pedestrian", "moving")
    }
    # pole, structure, static, root, moving, human, pedestrian: 6 edges
    assert far == pytest.approx(
        {
            "pole": 0,
            "structure": 0,
            "fence": 2 / 6,
            "road": 4 / 6,
            "ground": 4 / 6,
            "car": 5 / 6,
            "pedestrian": 1,
            "moving": 5 / 6,
        }
    )


def test_a_set_of_all_leaves_costs_nothing():
    labels = {0: "a", 1: "b", 2: "c", 3: "d", 4: ["x", "y"]}
    hierarchy = Hierarchy.from_config({"labels": labels, "tree": {"x": ["a", "b"], "y": ["c", "d"]}})
    logits, _ = draw(hierarchy, 0)
    loss = tree_wasserstein(logits, torch.full((2, 3, 4), len(hierarchy)), hierarchy)
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_a_tree_of_one_leaf_costs_nothing():
    hierarchy = Hierarchy.from_config({"labels": ["a"]})
    loss = tree_wasserstein(torch.randn(1, 1, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long), hierarchy)
    assert loss.item() == 0
