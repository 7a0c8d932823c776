"""Every loss refuses inputs that do not fit, and says what to do about it."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

from seghiero_core.config.loading import load_config
from seghiero_core.errors import ConfigError
from seghiero_core.hierarchy.tree import IGNORE_INDEX, Hierarchy
from seghiero_core.losses import LOSSES, build_loss, class_weights, inputs
from seghiero_core.model.segmentation import SegmentationOutput
from seghiero_core.training.prepare import prepare
from support.trees import CAMVID, random_target

HIERARCHY = Hierarchy.from_config(CAMVID)
LEAVES, NODES = len(HIERARCHY.leaves), len(HIERARCHY)
SIZE = (2, 12, 16)
OPTIONS = {"region_mutual_information": {"pool": 1, "radius": 2}}  # enough whole windows in a small image
every_loss = pytest.mark.parametrize("name", LOSSES)
logit_losses = pytest.mark.parametrize("name", [n for n, entry in LOSSES.items() if entry.channels != "embedding"])
leaf_losses = pytest.mark.parametrize("name", [n for n, entry in LOSSES.items() if entry.channels == "leaves"])
weighted_losses = pytest.mark.parametrize("name", [n for n, entry in LOSSES.items() if entry.class_weight])


def draw(name):
    torch.manual_seed(3)
    channels = {"leaves": LEAVES, "nodes": NODES, "embedding": 8}[LOSSES[name].channels]
    logits = torch.randn(SIZE[0], channels, *SIZE[1:])
    return logits, random_target(HIERARCHY, *SIZE)


def call(name, logits, target, **options):
    return LOSSES[name].load(name)(logits, target, HIERARCHY, **OPTIONS.get(name, {}), **options)


@every_loss
def test_the_default_ignore_index_is_that_of_the_loaders(name):
    logits, target = draw(name)
    assert (target == IGNORE_INDEX).any()
    assert torch.equal(call(name, logits, target), call(name, logits, target, ignore_index=IGNORE_INDEX))


@every_loss
@pytest.mark.parametrize("value", [NODES, 255, -2])
def test_a_value_outside_the_nodes_is_named(name, value):
    logits, target = draw(name)
    target[1, 3, 5] = value
    with pytest.raises(ValueError, match=rf"target: {value} is neither a label \(0 to 15\) nor the ignore index"):
        call(name, logits, target)


@every_loss
def test_another_ignore_index_may_be_given_and_the_default_is_then_a_wrong_value(name):
    logits, target = draw(name)
    with pytest.raises(ValueError, match=r"target: -1 is neither .* nor the ignore index \(255\)"):
        call(name, logits, target, ignore_index=255)
    masked = target.where(target != IGNORE_INDEX, 255)
    assert torch.equal(call(name, logits, masked, ignore_index=255), call(name, logits, target))


@every_loss
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_any_integer_dtype_is_a_target(name, dtype):
    logits, target = draw(name)
    masked = target.where(target != IGNORE_INDEX, 100)
    value = call(name, logits, masked.to(dtype), ignore_index=100)
    assert torch.equal(value, call(name, logits, target))


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_a_target_of_other_numbers_is_refused(name, dtype):
    logits, target = draw(name)
    with pytest.raises(ValueError, match=r"target: expected integers \(node indices\), found torch"):
        call(name, logits, target.clamp(min=0).to(dtype))


@every_loss
def test_dimensions(name):
    logits, target = draw(name)
    with pytest.raises(ValueError, match=r"target: expected 3 dimensions \(B,H,W\), found shape \(2, 1, 12, 16\)"):
        call(name, logits, target[:, None])
    with pytest.raises(ValueError, match=r"(logits|embedding): expected 4 dimensions \(B,C,H,W\), found shape"):
        call(name, logits[0], target)


@every_loss
def test_batch_size(name):
    logits, target = draw(name)
    with pytest.raises(ValueError, match="batch size 1 differs from the target's 2"):
        call(name, logits[:1], target)


@logit_losses
@pytest.mark.parametrize("factor", [1, 4])
def test_logits_smaller_than_the_target(name, factor):
    logits, target = draw(name)
    small = logits[:, :, ::4, ::factor]
    message = f"logits: 3 x {16 // factor} px, but the target is 12 x 16 px; upsample the logits to the target's size"
    with pytest.raises(ValueError, match=message):
        call(name, small, target)


def test_an_embedding_may_have_any_size_and_any_number_of_channels():
    logits, target = draw("tree_triplet")
    assert call("tree_triplet", logits[:, :5, ::4, ::4], target).isfinite()


@logit_losses
@pytest.mark.parametrize("channels", [LEAVES - 1, LEAVES + 1, NODES + 1])
def test_channels(name, channels):
    _, target = draw(name)
    with pytest.raises(ValueError, match=rf"logits: expected .*channels.* found {channels}\b"):
        call(name, torch.randn(SIZE[0], channels, *SIZE[1:]), target)


@pytest.mark.parametrize("name", [n for n, entry in LOSSES.items() if entry.channels == "nodes"])
def test_a_loss_over_nodes_needs_every_node(name):
    logits, target = draw(name)
    with pytest.raises(ValueError, match=r"logits: expected 16 channels \(one per node\), found 11"):
        call(name, logits[:, :LEAVES], target)


@leaf_losses
def test_a_loss_over_leaves_reads_the_first_channels_of_nodes(name):
    torch.manual_seed(0)
    nodes = torch.randn(SIZE[0], NODES, *SIZE[1:], requires_grad=True)
    leaves = nodes.detach()[:, :LEAVES].clone().requires_grad_()
    target = random_target(HIERARCHY, *SIZE)
    target[:, :, 3:] = random_target(HIERARCHY, *SIZE, ignored=0, inner=False)[:, :, 3:]  # room for whole windows
    values = [call(name, logits, target) for logits in (nodes, leaves)]
    for value in values:
        value.backward()
    assert torch.equal(*values) and leaves.grad.any()
    assert torch.equal(nodes.grad[:, :LEAVES], leaves.grad) and not nodes.grad[:, LEAVES:].any()


@weighted_losses
@pytest.mark.parametrize("number", [LEAVES - 1, NODES])
def test_class_weights_of_another_number_of_leaves(name, number):
    logits, target = draw(name)
    with pytest.raises(ValueError, match=rf"class_weight: expected shape \(11,\), one per leaf, found \({number},\)"):
        call(name, logits, target, class_weight=torch.ones(number))


@pytest.mark.parametrize("name", [n for n, entry in LOSSES.items() if "level_weights" in entry.options])
def test_level_weights_of_another_number_of_levels(name):
    logits, target = draw(name)
    with pytest.raises(ValueError, match="level_weights: expected 3 weights, one per level, found 1"):
        call(name, logits, target, level_weights=[1.0])


@pytest.mark.parametrize("name", [n for n, entry in LOSSES.items() if "level_weights" in entry.options])
@pytest.mark.parametrize("weights", [[0, 0, 0], [1, -1, 1], [1, float("nan"), 1], -0.5])
def test_level_weights_without_a_mean(name, weights):
    logits, target = draw(name)
    with pytest.raises(ValueError, match="level_weights: expected weights of at least 0, and one above 0, found"):
        call(name, logits, target, level_weights=weights)


@every_loss
def test_a_target_without_pixels_has_no_wrong_value(name):
    logits, target = draw(name)
    channels = LOSSES[name].channels
    options = {"ignore_index": IGNORE_INDEX, "validate": True}
    checked, same = inputs.check_inputs(logits[:0], target[:0], HIERARCHY, channels, **options)
    assert len(checked) == len(same) == 0


@pytest.fixture
def value_checks(monkeypatch):
    """The targets whose values were checked."""
    checked = []
    check = inputs._check_values

    def counted(target, *arguments):
        checked.append(target)
        check(target, *arguments)

    monkeypatch.setattr(inputs, "_check_values", counted)
    return checked


@every_loss
def test_values_are_checked_by_default(name, value_checks):
    assert inspect.signature(LOSSES[name].load(name)).parameters["validate"].kind is inspect.Parameter.KEYWORD_ONLY
    logits, target = draw(name)
    call(name, logits, target, validate=False)
    assert not value_checks
    call(name, logits, target)
    assert len(value_checks) == 1


@every_loss
def test_shapes_are_checked_without_validate(name):
    logits, target = draw(name)
    with pytest.raises(ValueError, match="batch size"):
        call(name, logits[:1], target, validate=False)


@every_loss
def test_build_loss_checks_values_unless_told_otherwise(name, value_checks):
    terms = {name: 1.0} if LOSSES[name].channels != "embedding" else {"node_bce": 1.0, name: 1.0}
    section = {"terms": terms, "auxiliary": 0.4}
    loss = build_loss(section, HIERARCHY, validate=False)  # as training does
    logits = torch.randn(SIZE[0], loss.num_channels, *SIZE[1:])
    embedding = torch.nn.functional.normalize(torch.randn(SIZE[0], 8, 3, 4), dim=1)
    target = random_target(HIERARCHY, *SIZE)
    total, parts = loss(logits, target, embedding=embedding, auxiliary_logits=logits)
    assert total.isfinite() and name in parts and not value_checks
    build_loss(section, HIERARCHY)(logits, target, embedding=embedding)
    assert value_checks


def test_training_checks_no_values(small, value_checks):
    loss = prepare(load_config(small)).loss
    loss(torch.randn(1, loss.num_channels, 4, 6), torch.zeros(1, 4, 6, dtype=torch.long))
    assert not value_checks


@every_loss
def test_arrays_and_model_outputs_are_refused(name):
    logits, target = draw(name)
    with pytest.raises(ValueError, match="target: expected a tensor, found ndarray; use torch.from_numpy"):
        call(name, logits, target.numpy())
    with pytest.raises(ValueError, match=r"expected a tensor, found SegmentationOutput; of a model's output take \."):
        call(name, SegmentationOutput(logits, None, None), target)


def test_every_wrong_value_is_named():
    logits, _ = draw("leaf_cross_entropy")
    target = torch.full(SIZE, 42)
    target[0, 0, 0] = 255
    with pytest.raises(ValueError, match=r"target: 42, 255 is neither .*hierarchy\.to_target\(mask\)"):
        call("leaf_cross_entropy", logits, target)


def test_class_weights_of_another_kind_or_length_are_refused():
    with pytest.raises(ValueError, match="unknown class weights 'median'. Known: auto, median_frequency"):
        class_weights(np.ones(11), "median")
    with pytest.raises(ConfigError, match="expected 11 weights, one per leaf, found 7"):
        build_loss({}, HIERARCHY, counts=np.ones(7))
