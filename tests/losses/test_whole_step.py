"""With the label counts of a whole step, the shares of its batches add up to the loss of all of them at once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seghiero_core.hierarchy.tree import IGNORE_INDEX, Hierarchy
from seghiero_core.losses import LOSSES, PRESETS, build_loss
from seghiero_core.losses.reductions import label_counts
from support.trees import hierarchies, random_target

SIZE = (4, 6, 8)
OPTIONS = {"region_mutual_information": {"pool": 1, "radius": 2}, "tree_triplet": {"samples": 20}}
few = settings(derandomize=True, max_examples=8, deadline=None)


def draw(hierarchy, seed):
    """Labels of images that differ in how much is ignored: one almost all, one only coarsely labeled."""
    torch.manual_seed(seed)
    target = random_target(hierarchy, *SIZE)
    target[0, 1:] = IGNORE_INDEX
    target[1] = target[1].where(target[1] >= len(hierarchy.leaves), IGNORE_INDEX)
    target[2, :, 3:] = random_target(hierarchy, *SIZE, ignored=0, inner=False)[2, :, 3:]  # has whole windows
    return target, torch.rand(len(hierarchy.leaves), dtype=torch.float64) + 0.1


@pytest.mark.parametrize("name", LOSSES)
@few
@given(hierarchy=hierarchies(sets=True), seed=st.integers(0, 2**16), sizes=st.sampled_from([(2, 2), (1,) * 4, (1, 3)]))
def test_shares_add_up(name, hierarchy, seed, sizes):
    target, class_weight = draw(hierarchy, seed)
    entry = LOSSES[name]
    channels = {"leaves": len(hierarchy.leaves), "nodes": len(hierarchy), "embedding": 3}[entry.channels]
    x = (torch.randn(SIZE[0], channels, *SIZE[1:], dtype=torch.float64) * 2).requires_grad_()
    options = OPTIONS.get(name, {}) | ({"class_weight": class_weight} if entry.class_weight else {})
    whole = entry.load(name)(x, target, hierarchy, **options)
    (whole_grad,) = torch.autograd.grad(whole, x)
    counts = label_counts(target, hierarchy)
    batches = zip(x.split(sizes), target.split(sizes), strict=True)
    shares = [entry.load(name)(logits, labels, hierarchy, counts=counts, **options) for logits, labels in batches]
    total = sum(shares)
    torch.testing.assert_close(total, whole, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(total, x)[0], whole_grad, rtol=1e-9, atol=1e-12)
    assert torch.equal(entry.load(name)(x, target, hierarchy, counts=counts, **options), whole)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_sum_of_losses_passes_the_counts_on_and_so_do_those_of_the_auxiliary_head(preset):
    hierarchy = Hierarchy.from_config({"labels": list("abcd"), "tree": {"x": ["a", "b"], "y": ["c", "d"]}})
    target, class_weight = draw(hierarchy, 3)
    section = {"preset": preset, "auxiliary": 0.4, "class_weights": class_weight.tolist()}
    loss = build_loss(section, hierarchy)
    logits, auxiliary = torch.randn(2, SIZE[0], loss.num_channels, *SIZE[1:], dtype=torch.float64)
    embedding = torch.randn(SIZE[0], 3, *SIZE[1:], dtype=torch.float64)
    counts = label_counts(target, hierarchy)

    def call(images, counts):
        total, parts = loss(
            logits[images],
            target[images],
            embedding=embedding[images],
            auxiliary_logits=auxiliary[images],
            counts=counts,
        )
        return {"loss": total} | parts

    whole = call(slice(None), None)
    shares = [call(images, counts) for images in (slice(2), slice(2, 4))]
    for name, value in whole.items():
        torch.testing.assert_close(sum(share[name] for share in shares), value, msg=name)
