"""Losses of binary decisions: their digits, and labels at inner nodes of deep trees."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from seghiero_core.hierarchy.tree import IGNORE_INDEX, Hierarchy
from seghiero_core.losses.nodes import focal_tree_min, node_bce, tree_min
from support.trees import hierarchies, paths, random_target


def by_autograd(logits, target, hierarchy, coherent, gamma):
    """The loss written with one tensor operation per node, which autograd differentiates."""
    path = paths(hierarchy)
    score = logits.unbind(dim=1)
    under = [[n for n in range(len(path)) if node in path[n]] for node in range(len(path))]
    lowest = [torch.stack([score[n] for n in (p if coherent else p[-1:])]).amin(dim=0) for p in path]
    highest = [torch.stack([score[n] for n in (u if coherent else [i])]).amax(dim=0) for i, u in enumerate(under)]
    total, count = 0, 0
    for node in range(len(path)):
        for label in range(len(path)):
            if label != node and node in under[label]:
                continue  # unknown
            a = -lowest[node] if label in under[node] else highest[node]
            chosen = target == label
            total = total + (F.softplus(a) * a.sigmoid().pow(gamma) * chosen).sum()
            count += chosen.sum()
    return total / count.clamp(min=1)


@settings(derandomize=True, max_examples=20, deadline=None)
@given(hierarchy=hierarchies(), seed=st.integers(0, 2**16), gamma=st.sampled_from([0.0, 0.5, 2.0]))
def test_gradient_is_that_of_autograd(hierarchy, seed, gamma):
    torch.manual_seed(seed)
    logits = (torch.randn(2, len(hierarchy), 3, 4, dtype=torch.float64) * 3).requires_grad_()
    target = random_target(hierarchy, 2, 3, 4)
    for loss, coherent, power in (
        (lambda z: node_bce(z, target, hierarchy), False, 0.0),
        (lambda z: tree_min(z, target, hierarchy), True, 0.0),
        (lambda z: focal_tree_min(z, target, hierarchy, gamma=gamma), True, gamma),
    ):
        found, expected = loss(logits), by_autograd(logits, target, hierarchy, coherent, power) + 0 * logits.sum()
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad(found, logits)[0], torch.autograd.grad(expected, logits)[0])


@pytest.mark.parametrize("size", [3, 64, 65, 1000])
@pytest.mark.parametrize("score", [0.0, -30.0, 80.0])
def test_many_nodes_neither_overflow_nor_lose_digits(size, score):
    """A flat tree of `size` leaves: all but the label cost softplus(score), and the label costs softplus(-score)."""
    hierarchy = Hierarchy.from_config({"labels": [f"c{i}" for i in range(size)], "ignore": 65535})
    logits = torch.full((1, size, 1, 1), score)
    value = node_bce(logits, torch.zeros(1, 1, 1, dtype=torch.int64), hierarchy)
    s = torch.tensor(score, dtype=torch.float64)
    expected = ((size - 1) * F.softplus(s, threshold=99) + F.softplus(-s, threshold=99)) / size
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_tiny_loss_keeps_its_digits():
    hierarchy = Hierarchy.from_config({"labels": list("abc"), "tree": {"x": ["a", "b"], "c": None}})
    logits = torch.tensor([30.0, -30.0, -30.0, 30.0]).view(1, 4, 1, 1)
    target = torch.zeros(1, 1, 1, dtype=torch.int64)
    expected = F.softplus(torch.tensor(-30.0, dtype=torch.float64)).item()
    assert tree_min(logits, target, hierarchy).item() == pytest.approx(expected, rel=1e-5)


def test_a_label_that_weighs_nothing_changes_nothing():
    hierarchy = Hierarchy.from_config({"labels": list("abc"), "tree": {"x": ["a", "b"], "c": None}})
    torch.manual_seed(0)
    logits, target = torch.randn(1, 4, 5, 6), torch.randint(0, 3, (1, 5, 6))
    without = target.where(target != 2, IGNORE_INDEX)
    weight = torch.tensor([1.0, 1.0, 0.0])
    for loss in (node_bce, tree_min, focal_tree_min):
        torch.testing.assert_close(
            loss(logits, target, hierarchy, class_weight=weight), loss(logits, without, hierarchy)
        )
