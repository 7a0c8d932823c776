"""Models of timm as backbones, compared with timm's own forward passes."""

from __future__ import annotations

import pytest
import timm
import torch
from torch.nn import functional as F

from seghiero_core.backbones.networks.timm_network import from_windows, to_windows
from seghiero_core.model.factories import create_backbone, get_backbone_channels
from support.timm_shapes import timm_section

SMALL = ["test_vit", "test_efficientnet", "levit_128s"]  # one stride, a pyramid, windows and missing levels


def build(variant: str, **options) -> torch.nn.Module:
    torch.manual_seed(0)
    backbone = create_backbone(timm_section(variant, **options)).eval()
    for name, parameter in backbone.named_parameters():
        if name.endswith("gamma"):  # layer scales start near zero, and blocks as identities
            torch.nn.init.ones_(parameter)
        if "norm" in name:
            torch.nn.init.normal_(parameter, 1, 0.1)
    return backbone


def neck_inputs(backbone: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """The feature maps that the neck of a backbone receives."""
    received: list[list[torch.Tensor]] = []
    hook = backbone.neck.register_forward_pre_hook(lambda module, args: received.append(args[0]))
    with torch.no_grad():
        backbone(x)
    hook.remove()
    return received[0]


@pytest.mark.parametrize("variant", SMALL)
def test_any_size_gives_maps_of_the_image_size_divided_by_the_stride(variant):
    backbone = build(variant)
    channels = get_backbone_channels(timm_section(variant))
    for height, width in ((97, 131), (33, 47), (1, 5), (64, 96), (224, 256)):
        with torch.no_grad():
            maps = backbone(torch.randn(2, 3, height, width))
        expected = [(2, c, -(-height // s), -(-width // s)) for c, s in zip(channels, (4, 8, 16, 32), strict=True)]
        assert [tuple(each.shape) for each in maps] == expected


@pytest.mark.parametrize("variant", [*SMALL, "test_vit3"])
def test_every_parameter_that_learns_gets_a_gradient(variant):
    backbone = build(variant).train()
    sum(each.square().mean() for each in backbone(torch.randn(2, 3, 97, 131))).backward()
    missing = [name for name, p in backbone.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


def test_a_plain_vit_gives_the_normed_tokens_of_four_blocks():
    backbone = build("test_vit3")  # 9 blocks, and a register token
    x = torch.randn(2, 3, 64, 96)
    outputs: dict[int, torch.Tensor] = {}
    for number, block in enumerate(backbone.net.blocks):
        block.register_forward_hook(lambda module, args, output, number=number: outputs.update({number: output}))
    found = neck_inputs(backbone, x)
    for each, number in zip(found, (2, 4, 6, 8), strict=True):  # after 1/4, 1/2, 3/4 and all of them
        tokens = backbone.net.norm(outputs[number])[:, 1:]  # without the register
        torch.testing.assert_close(each, tokens.transpose(1, 2).unflatten(2, (4, 6)))


def test_position_embeddings_are_timms_own_at_the_native_size():
    backbone = build("test_vit3")  # timm's builder makes it for 160x160 px only
    theirs = timm.create_model("test_vit3", num_classes=0).eval()
    assert not theirs.dynamic_img_size
    theirs.load_state_dict(backbone.net.state_dict(), strict=False)
    x = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        expected = theirs.forward_intermediates(x, indices=[2, 4, 6, 8], norm=True, intermediates_only=True)
    for a, b in zip(neck_inputs(backbone, x), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_position_embeddings_are_interpolated_for_other_sizes():
    backbone = build("test_vit3")
    own = backbone.net.pos_embed  # 1,101,96: a register, which isn't moved, and 10x10 positions
    grid = own[:, 1:].transpose(1, 2).unflatten(2, (10, 10))
    moved = F.interpolate(grid, size=(6, 4), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    theirs = timm.create_model("test_vit3", num_classes=0, img_size=(96, 64)).eval()
    state = backbone.net.state_dict() | {"pos_embed": torch.cat([own[:, :1], moved], 1)}
    theirs.load_state_dict(state, strict=False)
    x = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        expected = theirs.forward_intermediates(x, indices=[8], norm=True, intermediates_only=True)[0]
    torch.testing.assert_close(neck_inputs(backbone, x)[3], expected, atol=1e-4, rtol=1e-4)


def test_patches_of_14_px_have_a_stride_of_16():
    backbone = build("eva02_tiny_patch14_224")
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        smaller = F.interpolate(x, size=(56, 84), mode="bilinear", align_corners=False)
        expected = backbone.net.forward_intermediates(
            smaller, indices=backbone.indices, norm=True, intermediates_only=True
        )
    for a, b in zip(neck_inputs(backbone, x), expected, strict=True):
        assert a.shape[2:] == (4, 6)
        torch.testing.assert_close(a, b)


def test_channels_last_maps_become_channels_first():
    backbone = build("mambaout_femto")
    outputs = []
    for stage in backbone.net.stages:
        stage.register_forward_hook(lambda module, args, output: outputs.append(output))
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, 64, 96))
    assert [each.shape[3] for each in outputs] == list(get_backbone_channels(timm_section("mambaout_femto")))
    for ours, theirs in zip(maps, outputs, strict=True):
        torch.testing.assert_close(ours, theirs.permute(0, 3, 1, 2))


def test_windows_are_seen_one_by_one():
    backbone = build("levit_128s")
    x = torch.randn(2, 3, 224, 448)
    whole = neck_inputs(backbone, x)
    parts = [neck_inputs(backbone, half) for half in x.split(224, dim=3)]
    for a, left, right in zip(whole, *parts, strict=True):
        torch.testing.assert_close(a, torch.cat([left, right], 3), atol=1e-4, rtol=1e-4)


def test_cutting_into_windows_is_undone():
    x = torch.randn(2, 3, 8, 12)
    windows = to_windows(x, 4)
    assert windows.shape == (12, 3, 4, 4)
    assert windows[4].equal(x[0, :, 4:8, 4:8])
    assert from_windows(windows, 2, 3).equal(x)


@pytest.mark.parametrize(("variant", "drop_path"), [("test_resnet", 0.3), ("test_vit", 0.3), ("test_efficientnet", 0)])
def test_gradient_checkpointing_changes_neither_gradients_nor_statistics(variant, drop_path):
    plain = build(variant, drop_path=drop_path).train()
    saving = build(variant, drop_path=drop_path, gradient_checkpointing=True).train()
    x = torch.randn(2, 3, 64, 64)
    for backbone in (plain, saving):
        torch.manual_seed(1)
        sum(each.square().mean() for each in backbone(x)).backward()
    for (key, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=lambda text, key=key: f"{key}: {text}")
    for a, b in zip(plain.buffers(), saving.buffers(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("variant", ["test_resnet", "test_vit"])
def test_drop_path_is_active_only_in_training(variant):
    backbone = build(variant, drop_path=0.9)
    for parameter in backbone.parameters():  # residual branches start near zero
        torch.nn.init.normal_(parameter, std=0.1)
    x = torch.randn(1, 3, 64, 64).expand(8, 3, 64, 64)
    with torch.no_grad():
        whole, dropped = backbone(x)[3], backbone.train()(x)[3]
    torch.testing.assert_close(whole[:1].expand_as(whole), whole, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(dropped[0], dropped[1:].mean(0), rtol=1e-3)
