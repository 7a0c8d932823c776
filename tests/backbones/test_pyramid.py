"""The levels C1 to C4 from maps of any strides."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seghiero_core.backbones.networks.pyramid import PyramidNeck
from seghiero_core.backbones.networks.timm_facts import TARGETS, plan_levels


@pytest.mark.parametrize(
    ("strides", "widths", "channels"),
    [
        ((4, 8, 16, 32), (8, 16, 24, 32), [8, 16, 24, 32]),
        ((16, 32), (128, 256), [32, 64, 128, 256]),  # LeViT: finer maps are made of the finest, halving the channels
        ((8, 16), (24, 32), [12, 24, 32, 32]),  # a coarser one is made of the one before
        ((4, 16), (8, 32), [8, 8, 32, 32]),
        ((16,), (192,), [48, 96, 192, 192]),
        ((8, 16, 32), (32, 72, 168), [16, 32, 72, 168]),
    ],
)
def test_levels_of_a_pyramid(strides, widths, channels):
    assert [level.channels for level in plan_levels(strides, widths, plain=False)] == channels


@given(st.lists(st.sampled_from([4, 8, 16, 32]), min_size=1, unique=True), st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_every_level_has_its_stride_and_a_gradient(strides, rows, columns):
    strides = sorted(strides)
    widths = [4 * (number + 1) for number in range(len(strides))]
    levels = plan_levels(strides, widths, plain=False)
    neck = PyramidNeck(levels)
    maps = [
        torch.randn(2, w, 32 * rows // s, 32 * columns // s, requires_grad=True)
        for w, s in zip(widths, strides, strict=True)
    ]
    made = neck(maps)
    for level, target, planned in zip(made, TARGETS, levels, strict=True):
        assert level.shape == (2, planned.channels, 32 * rows // target, 32 * columns // target)
        if target in strides:
            assert level is maps[strides.index(target)]
    sum(level.square().sum() for level in made).backward()
    assert all(parameter.grad is not None for parameter in neck.parameters())


@pytest.mark.parametrize("stride", TARGETS)
def test_a_plain_network_gives_four_levels_from_four_maps(stride):
    levels = plan_levels((stride,) * 4, (12,) * 4, plain=True)
    neck = PyramidNeck(levels)
    maps = [torch.randn(1, 12, 64 // stride, 96 // stride, requires_grad=True) for _ in TARGETS]
    made = neck(maps)
    assert [tuple(level.shape) for level in made] == [(1, 256, 64 // t, 96 // t) for t in TARGETS]
    for number, level in enumerate(made):
        gradients = torch.autograd.grad(level.sum(), maps, retain_graph=True, allow_unused=True)
        assert [gradient is not None for gradient in gradients] == [each == number for each in range(4)]
