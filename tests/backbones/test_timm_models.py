"""The registration of timm's models: what is known without building one, options, weights and refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save, save_file
from torch import nn

from seghiero_core.backbones.networks import timm_probe
from seghiero_core.backbones.networks.timm_facts import TimmFacts
from seghiero_core.backbones.networks.timm_lookup import known_facts, timm_facts
from seghiero_core.config.schema import TrainingConfig
from seghiero_core.errors import UsageError, WeightsError
from seghiero_core.model.factories import (
    build_model,
    create_backbone,
    get_backbone_channels,
    get_backbone_strides,
    get_statistics,
)
from seghiero_core.testing.conformance import check_backbone, verify_backbone
from seghiero_core.training.freezing import backbone_stages, freeze, set_training_mode
from seghiero_core.training.optimizer import make_optimizer
from support.hub import Hub
from support.processes import ENVIRONMENT
from support.timm_shapes import timm_section

HEAD = {"type": "extremely_fast_segformer", "proj_dim": 16}


def test_strides_and_channels_are_looked_up():
    assert get_backbone_channels(timm_section("test_efficientnet")) == (24, 32, 48, 64)
    assert get_backbone_strides(timm_section("test_efficientnet", output_stride=16)) == (4, 8, 16, 16)
    report = verify_backbone("timm", "test_vit")
    assert report.ok and report.found == report.expected


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["test_vit", "test_efficientnet", "levit_128s"])
def test_conformance(variant):
    check_backbone("timm", variant)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        (timm_section("vit_smal_patch16_224"), ["has no model", "Did you mean 'vit_small_patch16_224'?"]),
        (timm_section("test_vit.r160_in1k"), ["Write `variant: test_vit`", "`pretrained`"]),
        (timm_section("test_vit", output_stride=16), ["backbone.output_stride", "remove the key"]),
        (timm_section("vgg11", drop_path=0.1), ["backbone.drop_path", "remove the key"]),
        (timm_section("test_efficientnet", drop_path=0.1), ["backbone.drop_path", "remove the key"]),  # it has no skips
        (timm_section("vgg11", gradient_checkpointing=True), ["backbone.gradient_checkpointing", "remove the key"]),
    ],
)
def test_what_a_model_lacks_is_refused(section, words):
    with pytest.raises(UsageError) as caught:
        create_backbone(section)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_model_that_cannot_be_a_backbone_says_why(monkeypatch):
    monkeypatch.setattr(timm_probe, "probe", lambda variant: TimmFacts(variant, refused="its maps are round"))
    with pytest.raises(UsageError, match="timm's visformer_tiny can't be a backbone: its maps are round"):
        create_backbone(timm_section("visformer_tiny"))


def test_output_stride_dilates():
    backbone = create_backbone(timm_section("test_efficientnet", output_stride=8)).eval()
    assert [each.shape[2] for each in backbone(torch.randn(1, 3, 64, 64))] == [16, 8, 8, 8]


def test_facts_are_kept_and_a_damaged_file_is_found_again(monkeypatch, tmp_path):
    monkeypatch.setenv("SEGHIERO_CACHE", str(tmp_path))
    from seghiero_core.backbones.networks import timm_lookup as module

    module._find_facts.cache_clear()
    assert known_facts("test_vit") is None
    facts = timm_facts("test_vit")
    (path,) = tmp_path.glob(f"timm-{timm.__version__}-*/test_vit.json")
    assert known_facts("test_vit") == facts
    path.write_text(path.read_text()[:40])
    assert known_facts("test_vit") is None and timm_facts("test_vit") == facts
    values = json.loads(json.dumps({"variant": "test_vit"}))
    path.write_text(json.dumps(values))  # of another version, with other facts
    assert known_facts("test_vit") is None
    monkeypatch.setenv("SEGHIERO_CACHE", "off")
    assert known_facts("test_vit") is None


def test_known_models_need_neither_torch_nor_timm():
    timm_facts("test_vit")
    code = (
        "import sys\n"
        "from seghiero_core.model import get_backbone_channels\n"
        "assert get_backbone_channels({'backbone': {'type': 'timm', 'variant': 'test_vit'}}) == (256,) * 4\n"
        "assert not {'torch', 'timm', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)


@pytest.mark.parametrize("how", [0, 2, "backbone"])
def test_the_neck_always_learns(how):
    model = build_model({**timm_section("test_vit"), "head": HEAD}, 3)
    freeze(model, how)
    set_training_mode(model, freeze_norm=False)
    learning = {name for name, p in model.backbone.named_parameters() if p.requires_grad}
    assert {name for name, _ in model.backbone.neck.named_parameters(prefix="neck")} <= learning
    of_blocks = {name.split(".")[2] for name in learning if name.startswith("net.blocks.")}
    assert of_blocks == {0: set("012345"), 2: set("345"), "backbone": set()}[how]
    assert model.backbone.neck.training and model.backbone.net.training is (how != "backbone")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = make_optimizer(model, TrainingConfig(lr=1e-2), pretrained=True)
    model(255 * torch.rand(2, 3, 64, 64)).logits.square().mean().backward()
    optimizer.step()
    changed = {name.removeprefix("backbone.") for name, p in model.named_parameters() if not p.equal(before[name])}
    assert {name for name in changed if name.startswith("net.")} <= learning
    assert "neck.levels.0.0.weight" in changed


def test_blocks_decay_by_quarters_and_the_neck_learns_as_the_head():
    model = build_model({**timm_section("test_vit2"), "head": HEAD}, 3)
    training = TrainingConfig(lr=1.0, layer_decay=0.5)
    rates = {p: g["lr"] for g in make_optimizer(model, training, pretrained=True).param_groups for p in g["params"]}
    for name, parameter in model.named_parameters():
        if name.startswith("backbone.net.blocks."):
            assert rates[parameter] == pytest.approx(0.1 * 0.5 ** (3 - int(name.split(".")[3]) // 2)), name
        elif name.startswith("backbone.net."):  # the patches, tokens and position embeddings, and the final norm
            assert rates[parameter] == pytest.approx(0.1 * 0.5**3), name
        else:
            assert rates[parameter] == 1.0, name
    plain = make_optimizer(model, TrainingConfig(lr=1.0), pretrained=True)
    rates = {p: g["lr"] for g in plain.param_groups for p in g["params"]}
    assert {rates[p] for p in model.backbone.net.parameters()} == {0.1}
    assert {rates[p] for p in model.backbone.neck.parameters()} == {1.0}


def test_stages_of_a_pyramid_have_no_neck():
    stages = backbone_stages(create_backbone(timm_section("test_efficientnet")))
    assert set(stages.values()) == {1, 2, 3, 4}


def weights(variant: str, seed: int = 5) -> nn.Module:
    """A whole model of timm with random weights."""
    torch.manual_seed(seed)
    model = timm.create_model(variant).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize("variant", ["tiny_dinov3", "test_vit3", "test_efficientnet", "levit_128s"])
def test_weights_from_a_path(variant, tmp_path):
    source = weights(variant)
    path = tmp_path / "weights.safetensors"
    save_file({key: value.contiguous() for key, value in source.state_dict().items()}, path)
    events = []
    backbone = create_backbone(timm_section(variant, pretrained=str(path)), events.append).eval()
    (report,) = events
    assert report["coverage"] == 1
    assert {name for name in report["missing"] if not name.startswith("neck.")} == set()
    state = source.state_dict()
    for name, value in backbone.net.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0)


def test_a_dinov3_shape_gives_timms_features(tmp_path):
    source = weights("tiny_dinov3")
    path = tmp_path / "weights.safetensors"
    save_file(source.state_dict(), path)
    backbone = create_backbone(timm_section("tiny_dinov3", pretrained=str(path))).eval()
    received = []
    backbone.neck.register_forward_pre_hook(lambda module, args: received.extend(args[0]))
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        backbone(x)
        expected = source.forward_intermediates(x, norm=True, intermediates_only=True)
    for a, b in zip(received, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_position_embeddings_of_another_size_are_resized(tmp_path):
    torch.manual_seed(0)
    source = timm.create_model("test_vit3", img_size=96)
    path = tmp_path / "weights.safetensors"
    save_file(source.state_dict(), path)
    backbone = create_backbone(timm_section("test_vit3", pretrained=str(path)))
    assert backbone.net.pos_embed.shape == (1, 101, 96)
    assert backbone.net.pos_embed[:, :1].equal(source.pos_embed[:, :1])


def test_weights_of_another_network_are_refused(tmp_path):
    state = weights("test_vit").state_dict()
    deeper = state | {
        key.replace("blocks.5.", "blocks.6."): v.clone() for key, v in state.items() if "blocks.5." in key
    }
    for name, tensors, words in (
        ("deeper", deeper, "has layers that timm test_vit lacks .*blocks.6"),
        ("other", weights("test_efficientnet").state_dict(), "another network"),
    ):
        save_file(tensors, tmp_path / f"{name}.safetensors")
        with pytest.raises(WeightsError, match=words):
            create_backbone(timm_section("test_vit", pretrained=str(tmp_path / f"{name}.safetensors")))


def test_tags_are_timms(tmp_path):
    with pytest.raises(WeightsError, match="Known tags: test_vit.r160_in1k"):
        create_backbone(timm_section("test_vit", pretrained="r160_in2k"))
    with pytest.raises(WeightsError, match="no published weights"):
        create_backbone(timm_section("test_vit4", pretrained=True))
    half = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    config = timm_section("vit_base_patch16_224", pretrained="augreg_in1k")
    assert get_statistics(config) == half
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")  # a path without statistics has the default tag's
    assert get_statistics(timm_section("vit_base_patch16_224", pretrained=str(tmp_path / "a.safetensors"))) == half


def test_published_weights_come_from_the_hub(tmp_path):
    source = weights("test_vit")
    files = {"timm/test_vit.r160_in1k": {"model.safetensors": save(source.state_dict())}}
    code = (
        "from seghiero_core.model import create_backbone\n"
        "net = create_backbone({'backbone': {'type': 'timm', 'variant': 'test_vit', 'pretrained': True}})\n"
        "print(net.net.blocks[3].attn.qkv.weight.double().sum().item())"
    )
    with Hub(files) as hub:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**ENVIRONMENT, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(source.blocks[3].attn.qkv.weight.double().sum().item())


def test_the_matrix_is_that_of_the_page():
    """A few rows of docs/backbones.md, which `benchmarks/backbone_matrix.py` wrote, are what is found now."""
    page = (Path(__file__).parents[2] / "docs" / "backbones.md").read_text()
    for variant in ("levit_128s", "pit_ti_224", "mambaout_femto"):
        (line,) = [line for line in page.splitlines() if line.startswith(f"| `{variant}` |")]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        facts = timm_facts(variant)
        assert cells[2] == ", ".join(f"{stride:g}" for stride in facts.own_strides)
        assert cells[3] == ", ".join(map(str, facts.channels))


def test_list_backbones_of_timm(run):
    code, out, _ = run("list-backbones", "--timm", "test_vit[23]", "--json")
    rows = {row["variant"]: row for row in json.loads(out)}
    assert code == 0 and set(rows) == {"test_vit2", "test_vit3"}
    assert rows["test_vit2"]["weights"] == {"test_vit2.r160_in1k": "apache-2.0"}
    assert rows["test_vit2"]["network_strides"] == [16, 16, 16, 16]
    assert rows["test_vit2"]["channels"] == [256] * 4
    parameters = sum(p.numel() for p in create_backbone(timm_section("test_vit2")).net.parameters())
    assert rows["test_vit2"]["parameters"] == parameters
    code, _, err = run("list-backbones", "--timm", "vit_smal_patch16")
    assert code == 2 and "Did you mean" in err
