"""The rules of a tree as a loss: extreme scores, and pieces of an image."""

from __future__ import annotations

import pytest
import torch

from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.losses import fused
from seghiero_core.losses.nodes import focal_tree_min, node_bce, tree_min
from seghiero_core.losses.rules import tree_rules
from support.trees import CAMVID, random_target

HIERARCHY = Hierarchy.from_config(CAMVID)


@pytest.mark.parametrize("loss", [tree_rules, node_bce, tree_min, focal_tree_min])
def test_pieces_of_an_image_add_up(loss, monkeypatch):
    """Scores fall from piece to piece and rise again, so that the greatest breach is in none of the outer pieces."""
    torch.manual_seed(0)
    x = torch.randn(2, len(HIERARCHY), 6, 8, dtype=torch.float64) - 6 * torch.tensor([2.0, 4, 1, 0, 3, 5])[:, None]
    target = random_target(HIERARCHY, 2, 6, 8)
    results = []
    for size in (fused.PIECE, 8 * len(HIERARCHY)):
        monkeypatch.setattr(fused, "PIECE", size)
        logits = x.clone().requires_grad_()
        value = loss(logits, target, HIERARCHY)
        value.backward()
        results.append((value.detach(), logits.grad))
    assert len(list(fused.pieces(x.flatten(2)))) == 12
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-15)


def test_rules_that_are_hardly_broken_keep_their_digits():
    """Breaches whose fifth power underflows: s = 1e-13 at every node, so that composition and decomposition are s."""
    x = torch.full((1, len(HIERARCHY), 2, 2), -30.0).requires_grad_()
    value = tree_rules(x, torch.zeros(1, 2, 2, dtype=torch.int64), HIERARCHY)
    value.backward()
    score = torch.tensor(-30.0, dtype=torch.float64).sigmoid()
    assert value.item() == pytest.approx(2 * score.item(), rel=1e-5)
    assert x.grad.sum().item() == pytest.approx(2 * score.item(), rel=1e-5)


@pytest.mark.parametrize("q", [1.0, 1.5, 5.0, 40.0])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_gradient_for_any_exponent(q, scale):
    torch.manual_seed(1)
    x = (torch.randn(1, len(HIERARCHY), 2, 3, dtype=torch.float64) * scale).requires_grad_()
    target = random_target(HIERARCHY, 1, 2, 3)
    assert torch.autograd.gradcheck(lambda x: tree_rules(x, target, HIERARCHY, q=q), x, atol=1e-6)


def test_rules_in_float32_are_those_in_float64():
    torch.manual_seed(2)
    x, target = torch.randn(2, len(HIERARCHY), 16, 16) * 5, random_target(HIERARCHY, 2, 16, 16)
    exact = x.double().requires_grad_()
    tree_rules(exact, target, HIERARCHY).backward()
    x.requires_grad_()
    tree_rules(x, target, HIERARCHY).backward()
    torch.testing.assert_close(x.grad, exact.grad.float(), rtol=1e-4, atol=1e-8)
