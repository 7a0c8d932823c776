"""The stem for N bands: the rule, the response, every backbone, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from seghiero_core.errors import UsageError
from seghiero_core.model.factories import build_model, build_trained_model, create_backbone
from seghiero_core.model.stem import adapt_stem
from support import tiny  # noqa: F401, registers a backbone

SMALL = [
    {"type": "tiny"},
    {"type": "resnet", "depth": 18},
    {"type": "convnext", "variant": "tiny"},
    {"type": "segformer", "variant": "mit-b0"},
]


def stem_of(backbone):
    return next(module for module in backbone.modules() if isinstance(module, nn.Conv2d))


@pytest.mark.parametrize(
    ("channels", "rgb"), [(1, ()), (2, ()), (3, (2, 1, 0)), (4, (0, 1, 2)), (5, (4, 0, 2)), (5, ())]
)
def test_the_rule(channels, rgb):
    backbone = create_backbone({"backbone": {"type": "tiny"}})
    red, green, blue = stem_of(backbone).weight.detach().clone().unbind(1)
    bias = stem_of(backbone).bias.detach().clone()
    adapt_stem(backbone, channels, rgb)
    stem = stem_of(backbone)
    for band, found in enumerate(stem.weight.unbind(1)):
        kept = dict(zip(rgb, (red, green, blue), strict=False)).get(band, (red + green + blue) / 3)
        assert torch.allclose(found, 3 / channels * kept, atol=1e-7)
    assert stem.in_channels == channels and torch.equal(stem.bias, bias) and stem.weight.requires_grad


def test_one_band_gets_the_sum_of_the_three_and_rgb_stays():
    gray, rgb = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
    before = gray.weight.detach().clone(), rgb.weight.detach().clone()
    adapt_stem(gray, 1)
    adapt_stem(rgb, 3, (0, 1, 2))
    assert torch.allclose(gray.weight, before[0].sum(dim=1, keepdim=True), atol=1e-6)
    assert torch.equal(rgb.weight, before[1])


@pytest.mark.parametrize("section", SMALL, ids=lambda section: section["type"])
@pytest.mark.parametrize(("channels", "rgb"), [(1, ()), (5, (0, 1, 2))])
def test_equal_bands_give_the_features_of_gray_rgb(section, channels, rgb):
    torch.manual_seed(0)
    backbone = create_backbone({"backbone": section}).train()
    backbone.requires_grad_(False)
    gray = torch.randn(1, 1, 64, 96)
    expected = backbone.eval()(gray.expand(-1, 3, -1, -1))
    adapt_stem(backbone.train(), channels, rgb)
    assert all(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    found = backbone.eval()(gray.expand(-1, channels, -1, -1))
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))


def test_all_bands_matter_and_the_generators_are_left_as_they_were():
    backbone = create_backbone({"backbone": {"type": "resnet", "depth": 18}}).eval()
    state = torch.get_rng_state()
    adapt_stem(backbone, 5, (0, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    image = torch.randn(1, 5, 64, 64, requires_grad=True)
    backbone(image)[3].sum().backward()
    assert (image.grad.abs().amax(dim=(0, 2, 3)) > 0).all()


class TwoStems(nn.Module):
    """As CrossViT: two patch embeddings of the image at two sizes, and a hidden layer with three channels."""

    def __init__(self):
        super().__init__()
        self.large, self.small = nn.Conv2d(3, 3, 8, 8), nn.Conv2d(3, 3, 4, 4, padding=2)
        self.hidden = nn.Conv2d(3, 5, 1)

    def forward(self, x):
        half = F.interpolate(x, scale_factor=0.5, mode="bicubic")
        return self.hidden(self.large(x)) + F.interpolate(self.hidden(self.small(half)), self.large(x).shape[2:])


def test_every_convolution_of_the_image_is_adapted_and_no_other():
    model = TwoStems()
    hidden = model.hidden.weight.detach().clone()
    adapt_stem(model, 4, (0, 1, 2))
    assert model.large.in_channels == model.small.in_channels == 4
    assert model.hidden.in_channels == 3 and torch.equal(model.hidden.weight, hidden)
    assert model(torch.rand(1, 4, 64, 64)).shape == (1, 5, 8, 8)


class Standardized(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        return F.conv2d(x, weight / self.weight.std(dim=(1, 2, 3), keepdim=True), stride=4)


class Patches(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3 * 16, 8)

    def forward(self, x):
        return self.layer(F.unfold(x, 4, stride=4).transpose(1, 2))


class ConvolutionAndPatches(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution, self.patches = nn.Conv2d(3, 8, 4, 4), Patches()

    def forward(self, x):
        return self.convolution(x).flatten(2).transpose(1, 2) + self.patches(x)


@pytest.mark.parametrize(
    ("backbone", "reason"),
    [
        (Standardized(3, 8, 4), "its Standardized rescales or shares its weights"),
        (nn.Conv2d(3, 6, 3, groups=3), "its Conv2d rescales or shares its weights"),
        (weight_norm(nn.Conv2d(3, 6, 3)), "rescales or shares its weights"),
        (Patches(), "no Conv2d takes the image"),
        (nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)), "something other than a Conv2d takes the image, too"),
        (ConvolutionAndPatches(), "something other than a Conv2d takes the image, too"),
    ],
)
def test_what_cannot_be_adapted_is_refused(backbone, reason):
    with pytest.raises(UsageError, match=f"dataset.channels: mine can't be adapted to 5 bands: .*{reason}"):
        adapt_stem(backbone, 5, name="mine")


def sections(channels=5, **more):
    statistics = {"mean": [100.0 * i for i in range(channels)], "std": [10.0] * channels}
    return {
        "backbone": {"type": "tiny"},
        "head": {"type": "extremely_fast_segformer", "proj_dim": 16},
        "dataset": {"channels": channels, **statistics, **more},
    }


def test_a_model_normalizes_in_stored_units_and_fills_gaps_with_the_mean():
    torch.manual_seed(0)
    model = build_model(sections(), 3).eval()
    image = torch.randn(1, 5, 40, 40) * 10 + model.mean
    gaps, means = image.clone(), image.clone()
    gaps[:, :, 5:9, 7:20] = torch.nan
    means[:, :, 5:9, 7:20] = model.mean.view(1, 5, 1, 1)
    assert torch.equal(model(gaps).logits, model(means).logits) and torch.isfinite(model(gaps).logits).all()
    plain = build_model({key: value for key, value in sections().items() if key != "dataset"}, 3)
    assert plain.mean.shape == (1, 3, 1, 1) and not plain.stored_units


def test_a_trained_model_is_built_with_the_same_shapes():
    torch.manual_seed(0)
    model = build_model(sections(rgb=[4, 3, 2]), 3).eval()
    again = build_trained_model(sections(rgb=[4, 3, 2]), 3, model.state_dict())
    image = torch.randn(1, 5, 33, 41) * 10
    assert torch.equal(again(image).logits, model(image).logits)


def test_statistics_are_required():
    config = sections()
    del config["dataset"]["mean"]
    with pytest.raises(UsageError, match=r"dataset\.mean and dataset\.std are required"):
        build_model(config, 3)
