"""Weights in every published key layout give the same features, or the same tensors, as in their own library."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
import torchvision
import transformers
from torch import nn
from torch.nn import functional as F

from seghiero_core.model.factories import create_backbone, get_statistics

RESNET = {"type": "resnet", "depth": 18}
CONVNEXT = {"type": "convnext", "variant": "tiny"}
MIT = {"type": "segformer", "variant": "mit-b0"}


def load(section: dict, path: Path) -> tuple[nn.Module, dict]:
    """The backbone with the weights at `path`, in eval mode, and the report."""
    events: list[dict] = []
    net = create_backbone({"backbone": {**section, "pretrained": str(path)}}, events.append)
    (report,) = events
    return net.eval(), report


def randomised(net: nn.Module) -> nn.Module:
    """Set weights with which every layer matters (a new ConvNeXt scales its branches by 1e-6), in eval mode."""
    torch.manual_seed(0)
    for name, value in net.state_dict().items():
        if name.endswith(("layer_scale", "layer_scale_parameter", "gamma", "running_var")):
            value.uniform_(0.5, 1)
        elif value.ndim == 1 and value.is_floating_point():
            value.add_(0.1 * torch.randn_like(value))
    return net.eval()


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_torchvision_resnet_gives_its_features(tmp_path, image):
    theirs = randomised(torchvision.models.resnet18())
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    net, report = load(RESNET, tmp_path / "resnet18.pth")
    expected = nn.Sequential(*list(theirs.children())[:-2])(image)
    torch.testing.assert_close(net(image)[3], expected, atol=1e-4, rtol=1e-4)
    assert report["unexpected"] == ("fc.weight", "fc.bias")


@torch.no_grad()
def test_torchvision_convnext_gives_its_features(tmp_path, image):
    theirs = randomised(torchvision.models.convnext_tiny())
    torch.save(theirs.state_dict(), tmp_path / "convnext.pth")
    net, report = load(CONVNEXT, tmp_path / "convnext.pth")
    expected = F.layer_norm(theirs.features(image).permute(0, 2, 3, 1), (768,), eps=1e-6).permute(0, 3, 1, 2)
    torch.testing.assert_close(net(image)[3], expected, atol=1e-4, rtol=1e-4)
    assert report["layout"] == "torchvision ConvNeXt"
    assert report["coverage"] == 1 and not report["missing"]
    assert "features.1.0.layer_scale" in report["reshaped"]
    assert all(key.startswith("classifier.") for key in report["unexpected"])


@torch.no_grad()
def test_a_transformers_folder_gives_its_features_and_statistics(tmp_path, image):
    theirs = randomised(transformers.ConvNextModel(transformers.ConvNextConfig()))
    theirs.save_pretrained(tmp_path / "convnext")
    statistics = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "convnext" / "preprocessor_config.json").write_text(json.dumps(statistics))
    net, report = load(CONVNEXT, tmp_path / "convnext")
    expected = theirs(image).last_hidden_state
    expected = F.layer_norm(expected.permute(0, 2, 3, 1), (768,), eps=1e-6).permute(0, 3, 1, 2)
    torch.testing.assert_close(net(image)[3], expected, atol=1e-4, rtol=1e-4)
    assert report["layout"] == "transformers ConvNeXt"
    config = {"backbone": {**CONVNEXT, "pretrained": str(tmp_path / "convnext")}}
    assert get_statistics(config) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@torch.no_grad()
def test_transformers_resnet_gives_its_features(tmp_path, image):
    config = transformers.ResNetConfig(hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic")
    theirs = randomised(transformers.ResNetModel(config))
    theirs.save_pretrained(tmp_path)
    net, report = load(RESNET, tmp_path)
    torch.testing.assert_close(net(image)[3], theirs(image).last_hidden_state, atol=1e-4, rtol=1e-4)
    assert report["layout"] == "transformers ResNet"


def facebook_convnext(state: dict[str, torch.Tensor], depthwise: str, pointwise: str) -> dict[str, torch.Tensor]:
    out = {}
    for key, value in state.items():
        part = key.split(".")
        if part[0] == "stem":
            key = f"downsample_layers.0.{part[1]}.{part[2]}"
        elif part[2] == "downsample":
            key = f"downsample_layers.{part[1]}.{part[3]}.{part[4]}"
        else:
            key = f"stages.{part[1]}.{part[3]}." + ".".join(part[4:])
            key = key.replace("conv_dw", depthwise).replace("mlp.fc", pointwise)
        out[key] = value
    return out


def test_the_convnext_authors_keys_are_translated_as_in_timm(tmp_path):
    from timm.models.convnext import checkpoint_filter_fn

    net = create_backbone({"backbone": CONVNEXT})
    state = facebook_convnext(net.state_dict(), "dwconv", "pwconv")
    torch.save({"model": state}, tmp_path / "fb.pth")
    loaded, report = load(CONVNEXT, tmp_path / "fb.pth")
    expected = checkpoint_filter_fn({"model": state}, timm.create_model("convnext_tiny"))
    assert not report["missing"] and not report["unexpected"]
    assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())


def openmmlab_convnext(state):
    state = facebook_convnext(state, "depthwise_conv", "pointwise_conv")
    extra = {f"norm{i}.weight": torch.ones(3) for i in range(4)}
    as_convolutions = {k: v[:, :, None, None] if "pointwise" in k and v.ndim == 2 else v for k, v in state.items()}
    return {f"backbone.{key}": value for key, value in (as_convolutions | extra).items()}


def authors_mit(state):
    out = {}
    for key, value in state.items():
        _, stage, *rest = key.split(".")
        stage, name = int(stage) + 1, ".".join(rest)
        name = name.replace("patch_embeddings.proj", f"patch_embed{stage}.proj")
        name = name.replace("patch_embeddings.layer_norm", f"patch_embed{stage}.norm")
        name = name.replace("layernorm_before", "norm1").replace("layernorm_after", "norm2")
        name = name.replace("attention.sequence_reduction.sequence_reduction", "attn.sr")
        name = name.replace("attention.sequence_reduction.layer_norm", "attn.norm")
        name = name.replace("attention.q_proj", "attn.q").replace("attention.o_proj", "attn.proj")
        name = name.replace("blocks.", f"block{stage}.")
        if name.startswith("layer_norm"):
            name = name.replace("layer_norm", f"norm{stage}")
        if "k_proj" in name:
            value = torch.cat([value, state[key.replace("k_proj", "v_proj")]])
            name = name.replace("attention.k_proj", "attn.kv")
        if "v_proj" not in name:
            out[name] = value
    return out | {"head.weight": torch.zeros(1000, 256), "head.bias": torch.zeros(1000)}


def openmmlab_mit(state):
    out = {}
    for key, value in state.items():
        _, stage, *rest = key.split(".")
        name = ".".join(rest)
        if name.startswith("layer_norm"):
            name = name.replace("layer_norm", "2")
        name = name.replace("patch_embeddings.proj", "0.projection").replace("patch_embeddings.layer_norm", "0.norm")
        name = name.replace("blocks.", "1.").replace("layernorm_before", "norm1").replace("layernorm_after", "norm2")
        name = name.replace("attention.sequence_reduction.sequence_reduction", "attn.sr")
        name = name.replace("attention.sequence_reduction.layer_norm", "attn.norm")
        name = name.replace("attention.o_proj", "attn.attn.out_proj")
        name = name.replace("mlp.dwconv.dwconv", "ffn.layers.1")
        for ours, theirs in (("mlp.fc1", "ffn.layers.0"), ("mlp.fc2", "ffn.layers.4")):
            if ours in name:
                name, value = name.replace(ours, theirs), value[:, :, None, None] if value.ndim == 2 else value
        if "q_proj" in name:
            value = torch.cat([state[key.replace("q_proj", f"{letter}_proj")] for letter in "qkv"])
            name = name.replace("attention.q_proj.", "attn.attn.in_proj_")
        if "k_proj" not in name and "v_proj" not in name:
            out[f"backbone.layers.{stage}.{name}"] = value
    return out | {"decode_head.conv_seg.weight": torch.zeros(19, 256, 1, 1)}


def prefixed(prefix):
    return lambda state: {f"{prefix}{key}": value for key, value in state.items()}


@pytest.mark.parametrize(
    ("section", "write", "layout", "reshaped"),
    [
        (CONVNEXT, openmmlab_convnext, "the ConvNeXt authors' or OpenMMLab's", 36),
        (CONVNEXT, prefixed("visual.trunk."), "own", 0),
        (RESNET, prefixed("module.backbone."), "own", 0),
        (MIT, authors_mit, "the SegFormer authors' MiT", 16),
        (MIT, openmmlab_mit, "OpenMMLab MiT", 32),
    ],
)
def test_every_layout_gives_the_same_tensors(tmp_path, section, write, layout, reshaped):
    net = randomised(create_backbone({"backbone": section}))
    torch.save({"state_dict": write(net.state_dict())}, tmp_path / "weights.pth")
    loaded, report = load(section, tmp_path / "weights.pth")
    assert report["layout"] == layout
    assert not report["missing"]
    assert report["coverage"] == 1
    assert len(report["reshaped"]) == reshaped
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), loaded.state_dict().values(), strict=True))
