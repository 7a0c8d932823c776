"""Folded networks equal the networks they were, and networks that can't be folded are left alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from seghiero_core.model.factories import build_model
from seghiero_core.model.folding import fold_batch_norms
from seghiero_core.model.segmentation import SegmentationModel

CASES = [
    ({"type": "resnet", "depth": 18}, "aspp", 26),
    ({"type": "segformer", "variant": "mit-b0"}, "ultrafast_segformer", 1),
    ({"type": "timm", "variant": "efficientnet_b0"}, "extremely_fast_segformer", 48),
    ({"type": "convnext"}, "mask_query", 0),
]


def with_statistics(network: nn.Module) -> nn.Module:
    """Give every BatchNorm statistics and weights that do something."""
    torch.manual_seed(0)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.uniform_(norm.weight, -1.5, 1.5)
            nn.init.normal_(norm.bias)
    return network.eval()


@pytest.mark.parametrize(("backbone", "head", "folded"), CASES)
def test_folding_changes_no_logits(backbone, head, folded):
    network = with_statistics(build_model({"backbone": backbone, "head": {"type": head}}, 5))
    images = torch.rand(2, 3, 97, 131) * 255
    with torch.inference_mode():
        before = network(images).logits
        assert fold_batch_norms(network) >= folded
        torch.testing.assert_close(network(images).logits, before, rtol=0, atol=1e-5 * float(before.abs().max()))
    assert fold_batch_norms(network) == 0


class Plugin(nn.Module):
    """A backbone of one convolution and its BatchNorm."""

    def __init__(self, wrap=lambda conv: conv):
        super().__init__()
        self.conv, self.norm = wrap(nn.Conv2d(3, 5, 4, stride=4)), nn.BatchNorm2d(5)

    def forward(self, x):
        return [self.norm(self.conv(x))]


class ReadTwice(Plugin):
    def forward(self, x):
        x = self.conv(x)
        return [x + self.norm(x)]


class ReadTwiceIfLarge(Plugin):
    def forward(self, x):
        x = self.conv(x)
        return [x + self.norm(x) if x.shape[-1] > 4 else self.norm(x)]


class ReadAttribute(Plugin):
    def forward(self, x):
        return [self.norm(self.conv(x).to(self.norm.weight.dtype))]


class First(nn.Module):
    """Takes the first map as the logits."""

    def forward(self, features):
        return features[0], None


@pytest.mark.parametrize(
    "backbone",
    [
        ReadTwice,
        ReadTwiceIfLarge,
        ReadAttribute,
        lambda: Plugin(torch.nn.utils.parametrizations.weight_norm),
        lambda: Plugin(torch.nn.utils.parametrizations.spectral_norm),
    ],
)
def test_networks_that_cannot_be_folded_are_left_alone(backbone):
    network = SegmentationModel(backbone(), First(), mean=[0.5] * 3, std=[0.25] * 3, stride=4)
    network = with_statistics(network)
    kept = {name: value.clone() for name, value in network.state_dict().items()}
    images = torch.rand(1, 3, 37, 50) * 255
    with torch.no_grad():
        before = network(images).logits
        assert fold_batch_norms(network) == 0
        assert torch.equal(network(images).logits, before)
    assert network.state_dict().keys() == kept.keys()
    for name, value in network.state_dict().items():
        assert torch.equal(value, kept[name])


def test_the_convolution_of_a_plain_plugin_is_folded():
    network = SegmentationModel(Plugin(), First(), mean=[0.5] * 3, std=[0.25] * 3, stride=4)
    assert fold_batch_norms(with_statistics(network)) == 1
