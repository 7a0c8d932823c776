"""Properties that every registered loss has, over random trees, labels and ignored pixels."""

from __future__ import annotations

import contextlib
import inspect
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seghiero_core import losses
from seghiero_core.hierarchy.tree import IGNORE_INDEX, Hierarchy
from seghiero_core.losses import LOSSES, combine, regions
from support.trees import CAMVID, hierarchies, random_target, tree_configs

SIZE = (2, 4, 6)
SMALL = {"region_mutual_information": {"pool": 1, "radius": 2}}
ONCE_DIFFERENTIABLE = {
    "marginal_cross_entropy",
    "tree_wasserstein",
    "node_bce",
    "tree_min",
    "focal_tree_min",
    "dice",
    "tree_rules",
}
few = settings(derandomize=True, max_examples=12, deadline=None)
every_loss = pytest.mark.parametrize("name", LOSSES)
seeds = st.integers(0, 2**16)


def call(name, x, target, hierarchy, **options):
    return LOSSES[name].load(name)(x, target, hierarchy, **{**SMALL.get(name, {}), **options})


def inputs(name, hierarchy, seed, dtype=torch.float32, scale=2.0):
    torch.manual_seed(seed)
    channels = {"leaves": len(hierarchy.leaves), "nodes": len(hierarchy), "embedding": 3}[LOSSES[name].channels]
    x = (torch.randn(SIZE[0], channels, *SIZE[1:], dtype=torch.float64) * scale).to(dtype)
    target = random_target(hierarchy, *SIZE)
    target[:, :, 3:] = random_target(hierarchy, *SIZE, ignored=0, inner=False)[:, :, 3:]  # room for whole windows
    return x.requires_grad_(), target


@every_loss
@few
@given(hierarchy=hierarchies(), seed=seeds)
def test_ignored_pixels_change_nothing(name, hierarchy, seed):
    x, target = inputs(name, hierarchy, seed)
    value = call(name, x, target, hierarchy)
    value.backward()
    ignored = (target == IGNORE_INDEX)[:, None].expand_as(x)
    assert value.isfinite() and value >= 0 and x.grad.isfinite().all()
    assert (x.grad[ignored] == 0).all()
    other = torch.where(ignored, torch.randn(x.shape) * 9, x.detach())
    assert torch.equal(call(name, other, target, hierarchy), value.detach())


@every_loss
@few
@given(hierarchy=hierarchies(), seed=seeds)
def test_only_ignored_pixels_give_zero(name, hierarchy, seed):
    x, target = inputs(name, hierarchy, seed)
    value = call(name, x, torch.full_like(target, IGNORE_INDEX), hierarchy)
    value.backward()
    assert value == 0 and (x.grad == 0).all()


@every_loss
@pytest.mark.parametrize("size", [(0, 12, 16), (2, 0, 16)])
def test_no_pixels_give_zero(name, size):
    hierarchy = Hierarchy.from_config(CAMVID)
    channels = {"leaves": len(hierarchy.leaves), "nodes": len(hierarchy), "embedding": 3}[LOSSES[name].channels]
    x = torch.zeros(size[0], channels, *size[1:], requires_grad=True)
    value = call(name, x, torch.zeros(size, dtype=torch.long), hierarchy)
    value.backward()
    assert value == 0 and value.dtype == torch.float32 and x.grad.shape == x.shape


@every_loss
@few
@given(config=tree_configs(), seed=seeds, order=st.randoms(use_true_random=False))
def test_order_of_ids_does_not_matter(name, config, seed, order):
    hierarchy = Hierarchy.from_config(config)
    names = list(config["labels"].values())
    order.shuffle(names)
    shuffled = Hierarchy.from_config({**config, "labels": dict(zip(config["labels"], names, strict=True))})
    x, target = inputs(name, hierarchy, seed, torch.float64)
    place = torch.tensor([hierarchy.index_of(node) for node in shuffled.nodes])
    moved = x if LOSSES[name].channels == "embedding" else x[:, place[: x.shape[1]]]
    back = torch.argsort(place)
    relabelled = back[target.clamp(min=0)].where(target >= 0, IGNORE_INDEX)
    torch.testing.assert_close(
        call(name, moved, relabelled, shuffled), call(name, x, target, hierarchy), rtol=1e-9, atol=1e-12
    )


@every_loss
@settings(derandomize=True, max_examples=4, deadline=None)
@given(hierarchy=hierarchies(max_leaves=4), seed=seeds)
def test_gradient_is_that_of_the_value(name, hierarchy, seed):
    x, target = inputs(name, hierarchy, seed, torch.float64)
    assert torch.autograd.gradcheck(lambda x: call(name, x, target, hierarchy), x, atol=1e-6, fast_mode=True)


@every_loss
def test_the_second_derivative_is_right_or_an_error(name):
    """Never silently 0, as of a gradient without a graph."""
    hierarchy = Hierarchy.from_config({"labels": list("abc"), "tree": {"x": ["a", "b"], "c": None}})
    x, target = inputs(name, hierarchy, 4, torch.float64)
    value = call(name, x, target, hierarchy)
    with contextlib.suppress(RuntimeError):
        (grad,) = torch.autograd.grad(value, x, create_graph=True)
        (value + grad.square().sum()).backward()
    if name in ONCE_DIFFERENTIABLE:
        assert x.grad is None
    else:
        assert torch.autograd.gradgradcheck(lambda x: call(name, x, target, hierarchy), x, atol=1e-5, fast_mode=True)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_finite_for_extreme_logits(name, dtype):
    hierarchy = Hierarchy.from_config(CAMVID)
    x, target = inputs(name, hierarchy, 3)
    x = torch.where(x > 0, 100.0, -100.0).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16 if dtype == torch.float32 else dtype):
        value = call(name, x, target, hierarchy)
    value.backward()
    assert value.isfinite() and value.dtype == torch.float32
    assert x.grad.isfinite().all() and x.grad.dtype == dtype


@every_loss
def test_logits_that_are_not_finite_give_a_loss_that_is_not(name):
    """Training skips the step then; an exception would end the run."""
    hierarchy = Hierarchy.from_config(CAMVID)
    x, target = inputs(name, hierarchy, 3)
    target = random_target(hierarchy, *SIZE, ignored=0, inner=False)
    with torch.no_grad():
        x[0] = torch.nan
    value = call(name, x, target, hierarchy)
    value.backward()
    assert not value.isfinite()


@every_loss
def test_value_is_the_same_without_gradient(name):
    hierarchy = Hierarchy.from_config(CAMVID)
    x, target = inputs(name, hierarchy, 5)
    with torch.inference_mode():
        value = call(name, x, target, hierarchy)
    assert torch.equal(value, call(name, x, target, hierarchy).detach())


@every_loss
def test_descent_lowers_the_loss(name):
    """A few hundred steps on free logits bring every loss close to what it can reach."""
    hierarchy = Hierarchy.from_config(CAMVID)
    x, target = inputs(name, hierarchy, 11, scale=0.1)
    start = call(name, x, target, hierarchy).item()
    optimizer = torch.optim.Adam([x], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        value = call(name, x, target, hierarchy)
        value.backward()
        optimizer.step()
    assert value.item() < 0.35 * start


@pytest.mark.parametrize("name", [name for name, entry in LOSSES.items() if entry.class_weight])
def test_class_weights_equal_repeated_pixels(name):
    """A class that weighs 3 counts as if each of its pixels occurred three times."""
    hierarchy = Hierarchy.from_config(CAMVID)
    x, _ = inputs(name, hierarchy, 2, torch.float64)
    target = random_target(hierarchy, *SIZE, inner=False)
    weight = torch.ones(len(hierarchy.leaves))
    weight[3] = 3
    target[0, 0, :2] = 3
    again = target.where(target == 3, IGNORE_INDEX)
    xs, targets = torch.cat([x, x, x], dim=3), torch.cat([target, again, again], dim=2)
    options = {"level_weights": [1, 0, 0]} if "level_weights" in LOSSES[name].options else {}
    weighted = call(name, x, target, hierarchy, class_weight=weight, **options)
    torch.testing.assert_close(weighted, call(name, xs, targets, hierarchy, **options))


@every_loss
def test_table_matches_the_function(name):
    parameters = inspect.signature(LOSSES[name].load(name)).parameters
    keywords = {key: p.default for key, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
    assert keywords.pop("ignore_index") == IGNORE_INDEX and keywords.pop("validate") is True
    assert keywords.pop("counts") is None
    assert ("class_weight" in keywords) == LOSSES[name].class_weight
    keywords.pop("class_weight", None)
    assert keywords == dict(LOSSES[name].options)


def test_the_package_lists_every_loss():
    assert set(LOSSES) | {"build_loss", "HierarchicalLoss"} <= set(losses.__all__) & set(dir(losses))
    assert all(callable(getattr(losses, name)) for name in losses.__all__ if name in LOSSES)
    assert losses.build_loss is combine.build_loss and losses.focal is regions.focal
    with pytest.raises(AttributeError, match="no attribute 'dise'"):
        losses.dise  # noqa: B018


def test_listing_losses_imports_no_torch():
    code = "import sys, seghiero_core.losses as l; l.check_loss_section({}); dir(l); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
