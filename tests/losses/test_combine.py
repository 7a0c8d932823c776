"""The `loss:` section: what it accepts, and the sum that it makes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from seghiero_core import losses
from seghiero_core.errors import ConfigError
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.losses import PRESETS, build_loss, check_loss_section, class_weights
from support.trees import CAMVID, random_target

HIERARCHY = Hierarchy.from_config(CAMVID)


def inputs(channels):
    torch.manual_seed(1)
    embedding = torch.nn.functional.normalize(torch.randn(2, 8, 3, 4), dim=1).requires_grad_()
    return torch.randn(2, channels, 12, 16, requires_grad=True), embedding, random_target(HIERARCHY, 2, 12, 16)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_train(preset):
    loss = build_loss({"preset": preset}, HIERARCHY, counts=np.arange(11))
    logits, embedding, target = inputs(loss.num_channels)
    total, parts = loss(logits, target, embedding=embedding if loss.uses_embedding else None)
    total.backward()
    assert set(parts) == set(loss.terms) and not any(part.requires_grad for part in parts.values())
    expected = sum(loss.terms[name].weight * part for name, part in parts.items())
    torch.testing.assert_close(total.detach(), expected)
    assert logits.grad.isfinite().all() and logits.grad.abs().sum() > 0
    assert (embedding.grad is not None) == loss.uses_embedding
    num_nodes = len(HIERARCHY)
    assert (loss.num_channels, loss.scores) == {
        "marginal": (11, "softmax"),
        "marginal_dice": (11, "softmax"),
        "flat": (11, "softmax"),
        "hssn": (num_nodes, "sigmoid"),
        "logicseg": (num_nodes, "sigmoid"),
        "wasserstein": (11, "softmax"),
    }[preset]


def test_default_is_the_marginal_loss_with_dice_and_class_weights():
    loss = build_loss({}, HIERARCHY, counts=np.arange(11))
    assert list(loss.terms) == ["marginal_cross_entropy", "dice"] and loss.class_weights is not None
    assert build_loss({"class_weights": None}, HIERARCHY).class_weights is None
    assert list(build_loss({"terms": {"dice": 1}}, HIERARCHY).terms) == ["dice"]
    assert build_loss({"terms": {"dice": 1}}, HIERARCHY).class_weights is None


def test_class_weights_that_no_loss_takes_are_a_fault():
    (fault,) = check_loss_section({"terms": {"dice": 1, "lovasz": 1}, "class_weights": "auto"})
    assert "dice, lovasz cannot use class weights" in fault and "focal" in fault


@pytest.mark.parametrize("preset", [["flat"], {"flat": 1}, 3])
def test_a_preset_is_a_name(preset):
    (fault,) = check_loss_section({"preset": preset})
    assert fault.startswith(f"loss.preset: expected a name, found {preset}. Known: marginal,")


def test_a_ratio_of_levels_is_a_list_of_powers():
    logits, _, target = inputs(11)
    by_list, by_ratio = (
        losses.marginal_cross_entropy(logits, target, HIERARCHY, level_weights=weights)
        for weights in ([1, 0.3, 0.09], 0.3)
    )
    torch.testing.assert_close(by_ratio, by_list)


def test_leaf_losses_read_the_first_channels_and_options_arrive():
    section = {"terms": {"node_bce": 0.5, "focal": {"weight": 2, "gamma": 0.5}}, "class_weights": [1.0] * 10 + [7.0]}
    loss = build_loss(section, HIERARCHY)
    logits, _, target = inputs(loss.num_channels)
    total, parts = loss(logits, target, fraction=0.0)
    weight = torch.tensor(section["class_weights"])
    focal = losses.focal(logits[:, :11], target, HIERARCHY, gamma=0.5, class_weight=weight)
    torch.testing.assert_close(parts["focal"], focal.detach())
    torch.testing.assert_close(total.detach(), 0.5 * parts["node_bce"] + 2 * parts["focal"])
    with pytest.raises(ValueError, match="16 channels, found 11"):
        loss(logits[:, :11], target, fraction=0.0)


def test_a_ramp_rises_over_the_run():
    loss = build_loss({"preset": "hssn"}, HIERARCHY)
    logits, embedding, target = inputs(loss.num_channels)
    totals = []
    for fraction in (0.0, 0.5, 1.0):
        torch.manual_seed(0)
        total, parts = loss(logits, target, embedding=embedding, fraction=fraction)
        totals.append(total.item())
    gain = 0.5 * parts["tree_triplet"].item()
    assert totals[1] - totals[0] == pytest.approx(gain / 2, rel=1e-3)
    assert totals[2] - totals[0] == pytest.approx(gain, rel=1e-3)
    with pytest.raises(ValueError, match="the model returned none"):
        loss(logits, target, fraction=0.0)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"presets": "flat"}, "loss.presets: unknown key. Did you mean 'preset'?"),
        ({"preset": "marginl"}, "Did you mean 'marginal'"),
        ({"preset": "flat", "terms": {"dice": 1}}, "not both"),
        ({"terms": {}}, "expected a mapping from losses to weights"),
        ({"terms": {"dise": 1}}, "Did you mean 'dice'"),
        ({"terms": {"dice": "much"}}, "expected a weight of at least 0 or a mapping"),
        ({"terms": {"dice": {"smoth": 1}}}, "Did you mean 'smooth'"),
        ({"terms": {"dice": {"weight": True}}}, "expected a number of at least 0, found True"),
        ({"terms": {"dice": 1, "tree_triplet": {"samples": 2.5}}}, "expected a whole number of at least 1"),
        ({"terms": {"dice": 1, "tree_triplet": {"ramp": 2}}}, "expected a share of the run"),
        ({"terms": {"tree_rules": {"q": 0.5}}}, "expected a number of at least 1"),
        ({"terms": {"marginal_cross_entropy": {"level_weights": [1, 1]}}}, "expected 3 weights, one per level"),
        ({"terms": {"marginal_cross_entropy": {"level_weights": "1"}}}, "expected a list of weights"),
        ({"terms": {"marginal_cross_entropy": {"level_weights": [0, 0, 0]}}}, "expected at least one weight above 0"),
        ({"terms": {"node_bce": 1, "level_cross_entropy": 1}}, "interpret the same logits differently"),
        ({"terms": {"tree_triplet": 1}}, "only reads the embedding"),
        ({"class_weights": "atuo"}, "Did you mean 'auto'"),
        ({"class_weights": [1, 2]}, "expected 11 weights, one per leaf, found 2"),
        ({"class_weights": [0] * 11}, "numbers above 0"),
        ({"auxiliary": -0.4}, "loss.auxiliary: expected a weight of at least 0"),
    ],
)
def test_faults_name_the_key_and_the_fix(section, message):
    faults = check_loss_section(section, HIERARCHY)
    assert len(faults) == 1 and message in faults[0] and faults[0].startswith("loss")
    with pytest.raises(ConfigError):
        build_loss(section, HIERARCHY)


def test_all_faults_come_together():
    assert len(check_loss_section({"terms": {"dise": 1, "focal": {"gama": 2}}, "auxiliary": "x"})) == 3


def test_class_weights():
    counts = np.array([100, 300, 600, 0])
    median = class_weights(counts, "median_frequency")
    np.testing.assert_allclose(median, [3.0, 1.0, 0.5, 1.0])
    auto = class_weights(counts, "auto")
    np.testing.assert_allclose(auto / auto[3], np.log(1.02) / np.log(1.02 + counts / 1000))
    assert auto.mean() == pytest.approx(1) and auto.argmax() == 3
    np.testing.assert_array_equal(class_weights(counts, [1, 2, 3, 4]), [1, 2, 3, 4])
    with pytest.raises(ConfigError, match="needs the label counts"):
        build_loss({"class_weights": "auto"}, HIERARCHY)
    loss = build_loss({"class_weights": "auto"}, HIERARCHY, counts=np.arange(11))
    assert loss.class_weights.argmax() == 0
