"""The built-in backbones, compared with the guide's table, timm and transformers, and the conformance suite."""

from __future__ import annotations

import subprocess
import sys

import pytest
import timm
import torch
from transformers import SegformerConfig
from transformers.models.segformer.modeling_segformer import SegformerModel

from seghiero_core.backbones.networks.mit import mit_config
from seghiero_core.errors import CheckFailed, UsageError, WeightsError
from seghiero_core.model.factories import create_backbone, get_backbone_channels, get_backbone_strides
from seghiero_core.registry import BACKBONES, HEADS, register_backbone
from seghiero_core.testing.conformance import check_backbone, verify_backbone

GUIDE = {
    ("resnet", "18"): (64, 128, 256, 512),
    ("resnet", "34"): (64, 128, 256, 512),
    ("resnet", "50"): (256, 512, 1024, 2048),
    ("resnet", "101"): (256, 512, 1024, 2048),
    ("resnet", "152"): (256, 512, 1024, 2048),
    ("convnext", "tiny"): (96, 192, 384, 768),
    ("convnext", "small"): (96, 192, 384, 768),
    ("convnext", "base"): (128, 256, 512, 1024),
    ("convnext", "large"): (192, 384, 768, 1536),
    ("convnext", "xlarge"): (256, 512, 1024, 2048),
    ("segformer", "mit-b0"): (32, 64, 160, 256),
    ("segformer", "mit-b1"): (64, 128, 320, 512),
    ("segformer", "mit-b2"): (64, 128, 320, 512),
    ("segformer", "mit-b3"): (64, 128, 320, 512),
    ("segformer", "mit-b4"): (64, 128, 320, 512),
    ("segformer", "mit-b5"): (64, 128, 320, 512),
}
BUILT_IN = ("resnet", "convnext", "segformer")
SMALL = [("resnet", "18"), ("convnext", "tiny"), ("segformer", "mit-b0")]


def section(name: str, variant: str, **options) -> dict:
    return {"backbone": {"type": name, BACKBONES.get(name).selector: variant, **options}}


@pytest.fixture
def registered():
    """Names that a test registers; they are removed afterwards."""
    names: list[str] = []
    yield names
    for name in names:
        BACKBONES.entries.pop(name, None)


def test_channels_are_those_of_the_guide():
    table = {(n, v): c for n in BUILT_IN for v, c in BACKBONES.get(n).variants.items()}
    assert table == GUIDE
    assert get_backbone_channels({}) == GUIDE["resnet", "101"]
    assert get_backbone_channels({"backbone": {"type": "resnet", "depth": 18}}) == GUIDE["resnet", "18"]


@pytest.mark.parametrize(("name", "variant"), GUIDE)
def test_forward_has_the_registered_shapes(name, variant):
    report = verify_backbone(name, variant)
    assert report.ok, report
    assert report.found == report.expected
    assert tuple(shape[1] for shape in report.found) == GUIDE[name, variant]
    assert set(report.heads) == set(HEADS.names())


@pytest.mark.parametrize("name", BUILT_IN)
def test_conformance(name):
    check_backbone(name)


@pytest.mark.parametrize("depth", [18, 50])
def test_resnet_equals_timm_with_its_weights(depth):
    theirs = timm.create_model(f"resnet{depth}", features_only=True, out_indices=(1, 2, 3, 4)).eval()
    ours = create_backbone(section("resnet", str(depth))).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 97, 131)
    with torch.no_grad():
        for a, b in zip(ours(x), theirs(x), strict=True):
            torch.testing.assert_close(a, b)


def test_convnext_equals_timm_with_its_weights_up_to_the_output_norms():
    theirs = timm.create_model("convnext_tiny", num_classes=0).eval()
    ours = create_backbone(section("convnext", "tiny")).eval()
    state = theirs.state_dict()
    assert set(ours.state_dict()) == {key for key in state if not key.startswith("head.")}
    ours.load_state_dict({key: state[key] for key in ours.state_dict()})
    x = torch.randn(1, 3, 97, 131)
    with torch.no_grad():
        expected = theirs.forward_intermediates(x, intermediates_only=True)[-4:]
        for a, b in zip(ours(x), expected, strict=True):
            mean, variance = b.mean(1, keepdim=True), b.var(1, keepdim=True, unbiased=False)
            torch.testing.assert_close(a, (b - mean) / (variance + 1e-6).sqrt(), atol=1e-4, rtol=1e-4)


def test_mit_equals_transformers_with_its_weights():
    theirs = SegformerModel(SegformerConfig()).eval()
    ours = create_backbone(section("segformer", "mit-b0")).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 97, 131)
    with torch.no_grad():
        expected = theirs(x, output_hidden_states=True).hidden_states
        for a, b in zip(ours(x), expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("variant", "depths", "millions"),  # sizes of the encoders in table 6 of Xie et al. 2021
    [
        ("mit-b0", [2, 2, 2, 2], 3.4),
        ("mit-b1", [2, 2, 2, 2], 13.1),
        ("mit-b2", [3, 4, 6, 3], 24.2),
        ("mit-b3", [3, 4, 18, 3], 44.0),
        ("mit-b4", [3, 8, 27, 3], 60.8),
        ("mit-b5", [3, 6, 40, 3], 81.4),
    ],
)
def test_mit_sizes_are_those_of_the_paper(variant, depths, millions):
    assert mit_config(variant).depths == depths
    with torch.device("meta"):
        parameters = sum(p.numel() for p in create_backbone(section("segformer", variant)).parameters())
    assert parameters / 1e6 == pytest.approx(millions, rel=0.03)


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize(("name", "variant"), [("resnet", "18"), ("resnet", "50"), ("convnext", "tiny")])
def test_output_stride(name, variant, output_stride):
    config = section(name, variant, output_stride=output_stride)
    strides = get_backbone_strides(config)
    with torch.device("meta"):
        backbone = create_backbone(config).eval()
        for size in ((96, 160), (97, 131)):
            for feature, stride in zip(backbone(torch.empty(1, 3, *size)), strides, strict=True):
                assert all(n // stride <= f <= -(-n // stride) for n, f in zip(size, feature.shape[2:], strict=True))
    assert strides[3] == output_stride


@pytest.mark.parametrize(("name", "variant"), SMALL)
def test_gradient_checkpointing_changes_neither_gradients_nor_statistics(name, variant):
    torch.manual_seed(0)
    plain = create_backbone(section(name, variant, drop_path=0.3)).train()
    saving = create_backbone(section(name, variant, drop_path=0.3, gradient_checkpointing=True)).train()
    saving.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 64, 64)
    for backbone in (plain, saving):
        torch.manual_seed(1)
        sum(feature.square().mean() for feature in backbone(x)).backward()
    for (key, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=lambda text, key=key: f"{key}: {text}")
    for a, b in zip(plain.buffers(), saving.buffers(), strict=True):
        torch.testing.assert_close(a, b)


def test_gradient_checkpointing_keeps_fewer_activations():
    def kept_bytes(**options) -> int:
        backbone, sizes = create_backbone(section("resnet", "18", **options)).train(), {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            features = backbone(torch.randn(1, 3, 128, 128))
        assert features[3].requires_grad
        return sum(sizes.values()) - sum(p.nbytes for p in backbone.parameters())

    assert kept_bytes(gradient_checkpointing=True) < 0.6 * kept_bytes()


@pytest.mark.parametrize(("name", "variant"), SMALL)
def test_drop_path_is_active_only_in_training(name, variant):
    torch.manual_seed(0)
    backbone = create_backbone(section(name, variant, drop_path=0.9))
    for parameter in backbone.parameters():  # residual branches start near zero
        torch.nn.init.normal_(parameter, std=0.1)
    x = torch.randn(1, 3, 64, 64).expand(8, 3, 64, 64)
    with torch.no_grad():
        dropped, whole = backbone.train()(x)[3], backbone.eval()(x)[3]
    # Each sample draws its own paths, so equal images differ in training.
    assert not torch.allclose(dropped[0], dropped[1:].mean(0), rtol=1e-3)
    torch.testing.assert_close(whole[:1].expand_as(whole), whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "variant"), SMALL)
def test_every_parameter_gets_a_gradient(name, variant):
    backbone = create_backbone(section(name, variant)).train()
    backbone(torch.randn(2, 3, 64, 64))[3].square().mean().backward()
    assert [n for n, p in backbone.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"type": "resnett"}, "resnet"),
        ({"type": "resnet", "depth": 51}, "50"),
        ({"type": "convnext", "variant": "tinny"}, "tiny"),
        ({"type": "resnet", "droppath": 0.1}, "drop_path"),
        ({"type": "segformer", "output_stride": 8}, "gradient_checkpointing"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(wrong, word):
    with pytest.raises(UsageError, match=word):
        create_backbone({"backbone": wrong})


def test_published_tags_exist_in_timm():
    for name, prefix in (("resnet", "resnet"), ("convnext", "convnext_")):
        for variant, tags in BACKBONES.get(name).weights.items():
            assert set(tags) <= set(timm.list_models(f"{prefix}{variant}.*", pretrained=True))
            for tag in tags:
                cfg = timm.get_pretrained_cfg(tag)
                entry = BACKBONES.get(name)
                assert entry.tag_statistics.get(tag, entry.statistics) == (cfg.mean, cfg.std)


def test_pretrained_without_hub_or_file_is_an_error(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"timm/resnet18\.a1_in1k"):
        create_backbone(section("resnet", "18", pretrained=True))
    with pytest.raises(WeightsError, match="nvidia/mit-b0"):
        create_backbone(section("segformer", "mit-b0", pretrained=True))
    with pytest.raises(WeightsError, match="a1_in1k"):
        create_backbone(section("resnet", "18", pretrained="a1_in2k"))


class Faulty(torch.nn.Module):
    """A backbone with one fault."""

    def __init__(self, fault: str):
        super().__init__()
        self.fault = fault
        widths = {"channels": (8, 24, 32, 64)}.get(fault, (8, 16, 32, 64))
        inputs, strides = (3, *widths[:3]), (4, 2, 1 if fault == "stride" else 2, 2)
        self.stages = torch.nn.ModuleList(
            torch.nn.Conv2d(a, b, 3, s, 1) for a, b, s in zip(inputs, widths, strides, strict=True)
        )
        if fault == "idle":
            self.unused = torch.nn.Linear(2, 2)

    def forward(self, x):
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        if self.fault == "stages":
            return features[:3]
        return [f.permute(0, 2, 3, 1) for f in features] if self.fault == "nhwc" else features


@pytest.mark.parametrize(
    ("fault", "explanation"),
    [
        ("stages", "3 feature maps, expected 4"),
        ("channels", "C2 has 24 channels, but it is registered with 16"),
        ("stride", "C3 has stride 8, expected 16"),
        ("nhwc", r"C1 is channels-last .*permute\(0, 3, 1, 2\)"),
        ("idle", "no gradient for backbone.unused"),
    ],
)
def test_each_fault_is_explained(fault, explanation, registered):
    registered.append("faulty")
    register_backbone("faulty", channels=(8, 16, 32, 64))(lambda variant: Faulty(fault))
    with pytest.raises(CheckFailed, match=explanation):
        check_backbone("faulty")


def test_an_error_in_the_network_is_in_the_report(registered):
    def build(variant):
        raise ValueError("no such layer")

    registered.append("broken")
    register_backbone("broken", channels=(8, 16, 32, 64))(build)
    assert verify_backbone("broken").problems == ("building or running the network failed: ValueError: no such layer",)


def test_channels_are_known_without_torch():
    code = (
        "import sys\n"
        "from seghiero_core.model import get_backbone_channels\n"
        "assert get_backbone_channels({'backbone': {'type': 'segformer'}}) == (32, 64, 160, 256)\n"
        "assert not {'torch', 'timm', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
