"""Gradient checkpointing of a block, against a plain call."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from seghiero_core.backbones.networks.checkpointing import checkpointed


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.SyncBatchNorm])  # without a process group SyncBatchNorm runs here
def test_statistics_are_counted_once(norm, momentum):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), norm(4, momentum=momentum), nn.ReLU())
    saving = copy.deepcopy(plain)
    for _ in range(2):
        x = torch.randn(2, 3, 8, 8)
        plain(x).square().sum().backward()
        checkpointed(saving, x).square().sum().backward()
    for a, b in zip(plain.buffers(), saving.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    assert int(saving[1].num_batches_tracked) == 2 and saving[1].momentum == momentum
