"""Losses of logits that are upsampled band by band equal those of whole logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from seghiero_core.hierarchy.tree import IGNORE_INDEX, Hierarchy
from seghiero_core.losses import bands
from seghiero_core.losses.bands import upsample
from seghiero_core.losses.catalog import LOSSES
from seghiero_core.losses.combine import build_loss
from seghiero_core.losses.reductions import label_counts

HIERARCHY = Hierarchy.from_config(
    {
        "labels": {0: "car", 1: "bus", 2: "sky", 3: "person", 4: "vehicle", 5: ["car", "sky"]},
        "tree": {"moving": {"vehicle": ["car", "bus"], "person": None}, "sky": None},
    }
)
BANDED = [name for name, entry in LOSSES.items() if entry.bands]


def inputs(loss, size, stride, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    shape = (2, loss.num_channels, -(-height // stride), -(-width // stride))
    logits = (3 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()
    target = torch.randint(-1, len(HIERARCHY.label_nodes), (2, height, width), generator=generator)
    return logits, target


def gradient(total, logits):
    return torch.autograd.grad(total, logits)[0]


def relative_error(found, expected):
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", BANDED)
def test_value_and_gradient_equal_those_of_whole_logits(name, dtype, bound, monkeypatch):
    monkeypatch.setitem(bands.BAND, "cpu", 2000)  # a few rows
    weights = {"class_weights": [1.0, 2.0, 0.5, 3.0]} if LOSSES[name].class_weight else {}
    loss = build_loss({"terms": {name: 0.7}, **weights}, HIERARCHY)
    logits, target = inputs(loss, (50, 37), 4, dtype=dtype)
    up = F.interpolate(logits, scale_factor=4, mode="bilinear")[..., :50, :37]
    expected, expected_parts = loss(up, target)
    found, parts = loss(logits, target, stride=4)
    torch.testing.assert_close(found, expected, rtol=bound, atol=0)
    assert parts.keys() == expected_parts.keys()
    torch.testing.assert_close(parts[name], expected_parts[name], rtol=bound, atol=0)
    assert not parts[name].requires_grad
    assert relative_error(gradient(found, logits), gradient(expected, logits)) < bound


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    stride=st.sampled_from([2, 4, 8, 16]),
    band=st.sampled_from([1, 300, 3000, 10**9]),
    extra=st.integers(0, 2),
    seed=st.integers(0, 99),
)
def test_any_size_stride_and_band(size, stride, band, extra, seed):
    loss = build_loss({"terms": {"marginal_cross_entropy": 1.0, "dice": 0.5, "tree_min": 0.3}}, HIERARCHY)
    logits, target = inputs(loss, size, stride, seed)
    logits = F.pad(logits.detach(), (0, extra, 0, extra)).requires_grad_()  # the image is padded to a larger stride
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(bands.BAND, "cpu", band)
        found, _ = loss(logits, target, stride=stride)
        expected, _ = loss(upsample(logits, stride, *size), target)
        torch.testing.assert_close(found, expected)
        if expected.requires_grad:
            torch.testing.assert_close(gradient(found, logits), gradient(expected, logits), rtol=1e-9, atol=1e-12)


def test_shares_of_a_step_add_up():
    loss = build_loss({"preset": "marginal_dice", "class_weights": None}, HIERARCHY)
    logits, target = inputs(loss, (24, 24), 4)
    target[1, :20] = IGNORE_INDEX
    counts = label_counts(target, HIERARCHY)
    whole, _ = loss(logits, target, stride=4)
    shares = [loss(logits[i : i + 1], target[i : i + 1], stride=4, counts=counts)[0] for i in range(2)]
    torch.testing.assert_close(sum(shares), whole)


@pytest.mark.parametrize("name", ["lovasz", "region_mutual_information", "tree_rules"])
def test_losses_that_need_whole_logits_get_them(name):
    loss = build_loss({"terms": {"node_bce": 1.0, name: 1.0}}, HIERARCHY)
    logits, target = inputs(loss, (40, 33), 4)
    found, parts = loss(logits, target, stride=4)
    expected, _ = loss(upsample(logits, 4, 40, 33), target)
    assert found == expected and list(parts) == ["node_bce", name]


def test_auxiliary_logits_have_a_stride_of_their_own():
    loss = build_loss({"preset": "flat", "auxiliary": 0.4}, HIERARCHY)
    logits, target = inputs(loss, (30, 41), 4)
    auxiliary, _ = inputs(loss, (30, 41), 16, seed=1)
    found, parts = loss(logits, target, stride=4, auxiliary_logits=auxiliary, auxiliary_stride=16)
    expected, expected_parts = loss(
        upsample(logits, 4, 30, 41), target, auxiliary_logits=upsample(auxiliary, 16, 30, 41)
    )
    torch.testing.assert_close(found, expected)
    assert parts.keys() == expected_parts.keys()
    torch.testing.assert_close(gradient(found, auxiliary), gradient(expected, auxiliary))


def test_only_ignored_pixels_give_zero():
    loss = build_loss({"preset": "marginal_dice", "class_weights": None}, HIERARCHY)
    logits, target = inputs(loss, (16, 16), 4)
    found, _ = loss(logits, torch.full_like(target, IGNORE_INDEX), stride=4)
    assert found == 0 and not gradient(found, logits).any()


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32])
def test_targets_of_any_whole_numbers(dtype):
    loss = build_loss({"preset": "marginal_dice", "class_weights": None}, HIERARCHY)
    logits, target = inputs(loss, (16, 16), 4)
    expected, _ = loss(logits, target, stride=4)
    found, _ = loss(logits, target.to(dtype), stride=4)
    assert torch.equal(found, expected)


def test_half_precision_is_computed_in_float32():
    loss = build_loss({"preset": "marginal"}, HIERARCHY)
    logits, target = inputs(loss, (32, 32), 4, dtype=torch.bfloat16)
    found, _ = loss(logits, target, stride=4)
    expected, _ = loss(upsample(logits.detach().float(), 4, 32, 32), target)
    torch.testing.assert_close(found, expected)
    assert gradient(found, logits).dtype == torch.bfloat16


def test_a_second_derivative_is_refused():
    loss = build_loss({"preset": "marginal"}, HIERARCHY)
    logits, target = inputs(loss, (16, 16), 4)
    found, _ = loss(logits, target, stride=4)
    with pytest.raises(RuntimeError, match="only once"):
        torch.autograd.grad(found, logits, create_graph=True)


def test_whole_logits_are_never_stored(monkeypatch):
    """The largest tensor that is made has the size of a band and not that of the image."""
    monkeypatch.setitem(bands.BAND, "cpu", 2**14)
    loss = build_loss({"preset": "marginal_dice", "class_weights": None}, HIERARCHY, validate=False)
    logits, target = inputs(loss, (256, 256), 4, dtype=torch.float32)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            nonlocal largest
            found = function(*arguments, **(options or {}))
            for each in found if isinstance(found, tuple | list) else (found,):
                if isinstance(each, torch.Tensor) and each.is_floating_point() and each is not logits:
                    largest = max(largest, each.numel())
            return found

    with Watch():
        total, _ = loss(logits, target, stride=4)
        total.backward()
    assert largest <= max(4 * 2**14, logits.numel())  # whole logits have 16 times as many numbers as the coarse ones
    assert logits.numel() * 16 > 4 * 2**14
