"""The linear head against its definition: BatchNorm, upsampling, and one matrix for every position."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from seghiero_core.config.loading import load_config
from seghiero_core.errors import ConfigError
from seghiero_core.model.factories import create_head

CHANNELS = (8, 12, 16, 20)


def features(batch=2):
    torch.manual_seed(0)
    return [torch.randn(batch, c, -(-97 // s), -(-131 // s)) for c, s in zip(CHANNELS, (4, 8, 16, 32), strict=True)]


@pytest.mark.parametrize("stage", [1, 3, 4])
def test_it_classifies_the_upsampled_map(stage):
    head = create_head({"head": {"type": "linear", "stage": stage}}, CHANNELS, 5, embedding=False)
    maps = features()
    logits, embedding = head(maps)
    assert embedding is None and logits.shape == (2, 5, *maps[0].shape[2:])
    assert sum(p.numel() for p in head.parameters()) == CHANNELS[stage - 1] * (2 + 5) + 5
    norm = nn.BatchNorm2d(CHANNELS[stage - 1])
    large = F.interpolate(norm(maps[stage - 1]), size=maps[0].shape[2:], mode="bilinear")
    matrix = head.classifier.weight.flatten(1)
    expected = torch.einsum("kc,bchw->bkhw", matrix, large) + head.classifier.bias[:, None, None]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)


def test_it_reads_no_other_map():
    head = create_head({"head": {"type": "linear"}}, CHANNELS, 5).eval()
    maps = features()
    logits, embedding = head(maps)
    again, same = head([*(each + 1 for each in maps[:3]), maps[3]])
    assert logits.equal(again) and embedding.equal(same)
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones_like(embedding[:, 0]))
    assert embedding.shape == (2, 64, *maps[3].shape[2:])


@pytest.mark.parametrize("stage", [0, 5])
def test_a_stage_that_is_not_there(small, stage):
    with pytest.raises(ConfigError, match="head.stage"):
        load_config(small, [f"head={{type: linear, stage: {stage}}}"])
