"""The loss of queries, compared with Mask2Former's of transformers and with brute force."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from transformers import Mask2FormerConfig
from transformers.models.mask2former import modeling_mask2former

from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.losses.mask_query import CELL, mask_query_losses
from seghiero_core.losses.reductions import label_counts

TREE = {"ground": ["sky", "grass"], "round": ["disc", "ring"]}
LABELS = {0: "sky", 1: "grass", 2: "disc", 3: "ring", 4: "round", 5: ["sky", "ring"]}
HIERARCHY = Hierarchy.from_config({"labels": LABELS, "tree": TREE})
WEIGHTS = {"class": 2.0, "mask": 5.0, "dice": 5.0}
LEAVES, NODES = 4, 6


def outputs(images=2, predictions=3, queries=7, channels=LEAVES, size=(5, 6), scale=2.0):
    class_logits = scale * torch.randn(images, predictions, queries, channels + 1)
    mask_logits = scale * torch.randn(images, predictions, queries, *size)
    return class_logits.requires_grad_(), mask_logits.requires_grad_()


def blocks(target: torch.Tensor) -> torch.Tensor:
    """B,h,w labels of cells as B,4h,4w labels of pixels."""
    return target.repeat_interleave(CELL, dim=1).repeat_interleave(CELL, dim=2)


def of_transformers(class_logits, mask_logits, target, monkeypatch) -> dict[str, torch.Tensor]:
    """The loss of Mask2Former with all cells as points, B,h,w `target`; summed over the predictions."""
    height, width = mask_logits.shape[3:]
    rows, columns = ((torch.arange(n) + 0.5) / n for n in (height, width))
    grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=2).reshape(1, -1, 2)
    config = Mask2FormerConfig(num_labels=LEAVES, no_object_weight=0.1, train_num_points=height * width)
    loss = modeling_mask2former.Mask2FormerLoss(config, {})
    monkeypatch.setattr(torch, "rand", lambda *size, **_: grid.expand(size[0], -1, -1))
    loss.sample_points_using_uncertainty = lambda logits, *_: grid.expand(len(logits), -1, -1)
    present = [labels.unique() for labels in target]
    masks = [(labels == classes[:, None, None]).float() for labels, classes in zip(target, present, strict=True)]
    pairs = [
        {"masks_queries_logits": masks, "class_queries_logits": classes}
        for masks, classes in zip(mask_logits.unbind(1), class_logits.unbind(1), strict=True)
    ]
    *auxiliary, last = pairs
    found = loss(last["masks_queries_logits"], last["class_queries_logits"], masks, present, auxiliary)
    monkeypatch.undo()
    return {
        name: sum(value for key, value in found.items() if key.startswith(theirs))
        for name, theirs in (("class", "loss_cross_entropy"), ("mask", "loss_mask"), ("dice", "loss_dice"))
    }


@pytest.mark.parametrize("queries", [7, 3])  # with 3, some masks remain without a query
@pytest.mark.parametrize("seed", range(3))
def test_it_equals_transformers(queries, seed, monkeypatch):
    torch.manual_seed(seed)
    class_logits, mask_logits = outputs(queries=queries)
    target = torch.randint(0, LEAVES, (2, 5, 6))
    target[1, target[1] == 0] = 1  # an image that lacks a class
    expected = of_transformers(class_logits, mask_logits, target, monkeypatch)
    found = mask_query_losses(class_logits, mask_logits, blocks(target), HIERARCHY, weights=WEIGHTS)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-5)
    gradients = [
        torch.autograd.grad(sum(losses[name] * WEIGHTS[name] for name in WEIGHTS), (class_logits, mask_logits))
        for losses in (found, expected)
    ]
    for own, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(own, theirs, atol=1e-5, rtol=1e-4)


def brute_force(class_logits, mask_logits, target, channels) -> dict[str, float]:
    """One image and one prediction: all pairings, pixel by pixel, with the masks enlarged by repetition."""
    height, width = target.shape
    x = mask_logits.repeat_interleave(CELL, 1).repeat_interleave(CELL, 2)[:, :height, :width].double()
    p = class_logits.double().softmax(1)
    valid = (target >= 0) & (target < LEAVES)
    masks = {}
    for node in range(channels):
        y = valid & torch.tensor([[int(leaf) in covered(node) for leaf in row] for row in target])
        if y.any():
            masks[node] = y.double()
    cells = CELL**2

    def terms(query, node):
        y = masks[node]
        bce = F.binary_cross_entropy_with_logits(x[query], y, reduction="none")[valid].mean()
        overlap, both = (x[query].sigmoid() * y)[valid].sum() / cells, (x[query].sigmoid() + y)[valid].sum() / cells
        return bce, 1 - (2 * overlap + 1) / (both + 1)

    best = None
    for chosen in itertools.permutations(range(len(x)), len(masks)):
        pairs = list(zip(chosen, masks, strict=True))
        found = [terms(query, node) for query, node in pairs]
        cost = sum(5 * bce + 5 * dice - 2 * p[q, n] for (bce, dice), (q, n) in zip(found, pairs, strict=True))
        if best is None or cost < best[0]:
            best = cost, pairs, found
    _, pairs, found = best
    classes = dict(pairs)
    unpaired = 0.1 * valid.double().mean()
    weight = [1.0 if q in classes else unpaired for q in range(len(x))]
    entropy = [-p[q, classes.get(q, channels)].log() for q in range(len(x))]
    return {
        "class": sum(w * e for w, e in zip(weight, entropy, strict=True)) / sum(weight),
        "mask": sum(bce for bce, _ in found) / len(masks),
        "dice": sum(dice for _, dice in found) / len(masks),
    }


def covered(node: int) -> list[int]:
    return [leaf for leaf in range(LEAVES) if HIERARCHY.covers[node, leaf]]


@pytest.mark.parametrize("channels", [LEAVES, NODES])
@pytest.mark.parametrize("seed", range(3))
def test_it_equals_brute_force_with_ignored_pixels_inner_nodes_and_odd_sizes(channels, seed):
    torch.manual_seed(seed)
    class_logits, mask_logits = (x.detach() for x in outputs(1, 1, 6, channels, (4, 4)))
    target = torch.randint(-1, len(HIERARCHY.label_nodes), (1, 13, 14))
    target[target == 2] = 1
    expected = brute_force(class_logits[0, 0], mask_logits[0, 0], target[0], channels)
    found = mask_query_losses(class_logits, mask_logits, target, HIERARCHY, weights=WEIGHTS)
    for name, value in found.items():
        assert value.item() == pytest.approx(float(expected[name]), rel=1e-4)


@pytest.mark.parametrize("channels", [LEAVES, NODES])
def test_the_shares_of_batches_add_up_to_the_step(channels):
    torch.manual_seed(0)
    class_logits, mask_logits = outputs(4, 2, 3, channels)
    target = torch.randint(-1, len(HIERARCHY.label_nodes), (4, 20, 24))
    target[0, :10] = -1
    target[1] = -1
    target[3, :, 2:] = 4
    counts = label_counts(target, HIERARCHY)
    whole = mask_query_losses(class_logits, mask_logits, target, HIERARCHY, weights=WEIGHTS)
    parts = [
        mask_query_losses(class_logits[i], mask_logits[i], target[i], HIERARCHY, weights=WEIGHTS, counts=counts)
        for i in (slice(0, 1), slice(1, 4))
    ]
    for name, value in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts), value)
        assert value > 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16])
def test_targets_of_any_whole_numbers(dtype):
    torch.manual_seed(0)
    class_logits, mask_logits = outputs(size=(40, 40))
    target = torch.randint(0, len(HIERARCHY.label_nodes), (2, 160, 160))
    expected, found = (
        mask_query_losses(class_logits, mask_logits, labels, HIERARCHY, weights=WEIGHTS)
        for labels in (target, target.to(dtype))
    )
    assert found == expected


def test_pixels_without_a_leaf_change_nothing():
    torch.manual_seed(0)
    class_logits, mask_logits = outputs()
    target = blocks(torch.randint(0, LEAVES, (2, 5, 6)))
    target[0, :8], target[1, :, 12:] = -1, 4
    other = mask_logits.detach().clone()
    other[0, ..., :2, :] = 50
    other[1, ..., 3:] = -50
    found, moved = (
        mask_query_losses(class_logits, masks, target, HIERARCHY, weights=WEIGHTS) for masks in (mask_logits, other)
    )
    for name, value in found.items():
        torch.testing.assert_close(value, moved[name])
    (gradient,) = torch.autograd.grad(found["mask"] + found["dice"], mask_logits)
    assert not gradient[0, ..., :2, :].any()
    assert not gradient[1, ..., 3:].any()
    assert gradient.any()


@pytest.mark.parametrize("value", [-1, 4, 7])  # ignored, an inner node, and a set
def test_a_batch_without_leaves_costs_nothing(value):
    class_logits, mask_logits = outputs()
    target = torch.full((2, 18, 22), value)
    found = mask_query_losses(class_logits, mask_logits, target, HIERARCHY, weights=WEIGHTS)
    assert [term.item() for term in found.values()] == [0, 0, 0]
    for gradient in torch.autograd.grad(sum(found.values()), (class_logits, mask_logits)):
        assert not gradient.any()


def test_scores_that_are_not_finite_give_a_loss_that_is_not_finite():
    """So that the step is counted as a bad one; the matching has to survive it."""
    class_logits, mask_logits = outputs()
    broken = torch.full_like(mask_logits, torch.nan)
    target = blocks(torch.randint(0, LEAVES, (2, 5, 6)))
    found = mask_query_losses(class_logits, broken, target, HIERARCHY, weights=WEIGHTS)
    assert not torch.isfinite(found["mask"])
