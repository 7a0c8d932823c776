"""Labels that are sets of leaves: marginal cross-entropy against brute force, other losses by what they know."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seghiero_core.hierarchy.tree import IGNORE_INDEX, Hierarchy
from seghiero_core.losses.catalog import LOSSES
from seghiero_core.losses.marginal import marginal_cross_entropy
from support.trees import hierarchies, random_target

few = settings(derandomize=True, max_examples=25, deadline=None)
seeds = st.integers(0, 2**16)


def draw(hierarchy, seed, channels=None):
    torch.manual_seed(seed)
    logits = torch.randn(2, channels or len(hierarchy.leaves), 4, 5, dtype=torch.double) * 2
    return logits.requires_grad_(), random_target(hierarchy, 2, 4, 5)


def leaves_at(hierarchy, level, label):
    """The leaves whose summed probability counts for a label at a level."""
    classes = hierarchy.leaf_to_level[level]
    if label < len(hierarchy):
        own = hierarchy.node_to_level[level][label]
        if own < 0:
            return [leaf for leaf in range(len(classes)) if hierarchy.covers[label, leaf]]
        return [leaf for leaf, found in enumerate(classes) if found == own]
    shared = {int(classes[leaf]) for leaf in hierarchy.sets[label - len(hierarchy)]}
    if len(shared) > 1:
        return list(hierarchy.sets[label - len(hierarchy)])
    return [leaf for leaf, found in enumerate(classes) if found in shared]


def brute_force(logits, target, hierarchy, level_weights, class_weight):
    probability, total = logits.softmax(dim=1), 0
    for level, level_weight in enumerate(level_weights):
        terms = []
        for b, y, x in (target != IGNORE_INDEX).nonzero().tolist():
            leaves = leaves_at(hierarchy, level, int(target[b, y, x]))
            terms.append((-probability[b, leaves, y, x].sum().log(), class_weight[leaves].mean()))
        if terms:
            total = total + level_weight * sum(t * w for t, w in terms) / sum(w for _, w in terms)
    return total / sum(level_weights)


@few
@given(hierarchy=hierarchies(sets=True), seed=seeds)
def test_marginal_against_brute_force(hierarchy, seed):
    logits, target = draw(hierarchy, seed)
    level_weights = torch.rand(len(hierarchy.levels)).tolist()
    class_weight = torch.rand(len(hierarchy.leaves), dtype=torch.double) + 0.1
    options = {"level_weights": level_weights, "class_weight": class_weight}
    loss = marginal_cross_entropy(logits, target, hierarchy, **options)
    expected = brute_force(logits, target, hierarchy, level_weights, class_weight) + 0 * logits.sum()
    torch.testing.assert_close(loss, expected)
    (found,), (wanted,) = torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits)
    torch.testing.assert_close(found, wanted)


@few
@given(hierarchy=hierarchies(sets=True), seed=seeds)
def test_marginal_gradient(hierarchy, seed):
    logits, target = draw(hierarchy, seed)
    assert torch.autograd.gradcheck(lambda z: marginal_cross_entropy(z, target, hierarchy), logits)


def test_a_set_of_all_leaves_costs_nothing_and_one_of_a_node_costs_what_the_node_does():
    tree = {"x": ["a", "b"], "y": ["c", "d"]}
    labels = {0: "a", 1: "b", 2: "c", 3: "d"}
    everything = Hierarchy.from_config({"labels": labels | {4: ["x", "y"]}, "tree": tree})
    logits, _ = draw(everything, 0)
    target = torch.full((2, 4, 5), len(everything))
    loss = marginal_cross_entropy(logits, target, everything)
    assert loss.item() == pytest.approx(0, abs=1e-12)
    (grad,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(grad, torch.zeros_like(grad))
    a_set = Hierarchy.from_config({"labels": labels | {4: ["a", "b"]}, "tree": tree})
    a_node = Hierarchy.from_config({"labels": labels | {4: "x"}, "tree": tree})
    assert a_set.values == a_node.values and a_set.sets == ()


def test_far_below_the_others_a_set_keeps_its_precision():
    labels = {0: "a", 1: "b", 2: "c", 3: ["a", "b"]}
    hierarchy = Hierarchy.from_config({"labels": labels})
    logits = torch.tensor([-300.0, -301.0, 300.0]).view(1, 3, 1, 1).requires_grad_()
    loss = marginal_cross_entropy(logits, torch.full((1, 1, 1), 3), hierarchy)
    assert loss.item() == pytest.approx(600 - torch.tensor([0.0, -1.0]).logsumexp(0).item())
    loss.backward()
    assert torch.isfinite(logits.grad).all() and logits.grad.sum().item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", [name for name, entry in LOSSES.items() if not entry.sets])
def test_other_losses_use_the_lowest_common_ancestor(name):
    tree = {"x": ["a", "b", "c"], "y": {"z": ["d", "e"]}, "f": None}
    labels = [*"abcdef", "x", ["a", "b"], ["d", "f"]]
    hierarchy = Hierarchy.from_config({"labels": dict(enumerate(labels)), "tree": tree})
    entry = LOSSES[name]
    channels = {"leaves": len(hierarchy.leaves), "nodes": len(hierarchy), "embedding": 8}[entry.channels]
    loss, first_set = entry.load(name), len(hierarchy)
    for ignore_index in (IGNORE_INDEX, 255):
        logits, target = draw(hierarchy, 3, channels)
        target = target.where(target != IGNORE_INDEX, ignore_index)
        plain = target.where(target != first_set, hierarchy.index_of("x"))
        plain = plain.where(plain != first_set + 1, ignore_index)
        assert not torch.equal(plain, target)
        of_sets, of_nodes = (loss(logits, labels, hierarchy, ignore_index=ignore_index) for labels in (target, plain))
        assert torch.equal(of_sets, of_nodes)
