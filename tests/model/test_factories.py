"""The factories and the assembled model: sizes, normalization, padding, auxiliary head, distributed training."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from seghiero_core.errors import UsageError
from seghiero_core.model.factories import build_model, create_head, get_statistics
from seghiero_core.model.segmentation import SegmentationModel
from support.processes import ENVIRONMENT

RESNET = {"backbone": {"type": "resnet", "depth": 18}, "head": {"type": "extremely_fast_segformer"}}
MIT = {"backbone": {"type": "segformer"}, "head": {"type": "segformer"}}


@pytest.fixture(scope="module")
def model() -> SegmentationModel:
    torch.manual_seed(0)
    return build_model(RESNET, 5, embedding=False).eval()


@given(height=st.integers(1, 100), width=st.integers(1, 100), batch=st.integers(1, 2))
@settings(max_examples=15, derandomize=True, deadline=None)
def test_accepts_any_size(model, height, width, batch):
    with torch.no_grad():
        output = model(torch.zeros(batch, 3, height, width))
    assert output.logits.shape == (batch, 5, height, width)
    assert output.embedding is None
    assert output.auxiliary_logits is None


@pytest.mark.parametrize("kind", ["convnext", "segformer"])
@pytest.mark.parametrize("size", [(1, 1), (33, 47), (97, 131)])
def test_other_families_accept_any_size(kind, size):
    net = build_model({"backbone": {"type": kind}, "head": {"type": "aspp"}}, 5, embedding=True).eval()
    with torch.no_grad():
        output = net(torch.rand(1, 3, *size))
    assert output.logits.shape == (1, 5, *size)
    assert torch.isfinite(output.logits).all()


@pytest.mark.parametrize("output_stride", [8, 16])
def test_pads_to_the_output_stride(output_stride):
    config = {"backbone": {"type": "resnet", "depth": 18, "output_stride": output_stride}}
    net = build_model(config, 5, embedding=False).eval()
    assert net.stride == output_stride
    with torch.no_grad():
        assert net(torch.rand(1, 3, 17, 9)).logits.shape == (1, 5, 17, 9)


def test_equals_backbone_and_head_on_the_normalized_padded_image(model):
    images = torch.randint(0, 256, (1, 3, 50, 70), dtype=torch.uint8)
    mean, std = torch.tensor(get_statistics(RESNET)).reshape(2, 1, 3, 1, 1)
    rows, columns = torch.arange(64).clamp(max=49), torch.arange(96).clamp(max=69)
    padded = ((images / 255 - mean) / std)[:, :, rows][..., columns]
    with torch.no_grad():
        logits, _ = model.head(model.backbone(padded))
        expected = F.interpolate(logits, size=(64, 96), mode="bilinear")[..., :50, :70]
        torch.testing.assert_close(model(images).logits, expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(model(images.float()).logits, model(images).logits)


def test_channels_last_gives_the_same(model):
    images = 255 * torch.rand(2, 3, 64, 96)
    other = build_model(RESNET, 5, embedding=False).eval().to(memory_format=torch.channels_last)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        found = other(images.contiguous(memory_format=torch.channels_last)).logits
        torch.testing.assert_close(found, model(images).logits, atol=1e-5, rtol=1e-4)


def test_auxiliary_head_is_used_only_in_training():
    net = build_model(RESNET, 5, embedding=True, auxiliary=True)
    images = 255 * torch.rand(2, 3, 50, 70)
    output = net.train()(images)
    assert output.auxiliary_logits.shape == output.logits.shape == (2, 5, 50, 70)
    assert output.embedding.shape[:2] == (2, 64)
    sum(tensor.square().mean() for tensor in output[:3]).backward()
    assert [n for n, p in net.named_parameters() if p.grad is None] == []
    with torch.no_grad():
        assert net.eval()(images).auxiliary_logits is None


def test_state_dict_holds_the_statistics():
    """A model whose backbone was trained with other statistics normalizes correctly with nothing but its checkpoint."""
    config = {"backbone": {"type": "resnet", "depth": 34, "pretrained": "ra4_e3600_r224_in1k"}}
    assert get_statistics(config) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    one = SegmentationModel(nn.Identity(), nn.Identity(), mean=(0.5,) * 3, std=(0.25,) * 3, stride=32)
    two = SegmentationModel(nn.Identity(), nn.Identity(), mean=(0.0,) * 3, std=(1.0,) * 3, stride=32)
    two.load_state_dict(one.state_dict())
    assert two.mean.flatten().tolist() == [127.5] * 3
    assert two.std.flatten().tolist() == [63.75] * 3


def test_local_weights_are_loaded(tmp_path):
    source = build_model(RESNET, 5, embedding=False).backbone
    path = tmp_path / "resnet18.pth"
    torch.save({"state_dict": {**source.state_dict(), "fc.weight": torch.zeros(1000, 512)}}, path)
    config = {"backbone": {"type": "resnet", "depth": 18, "pretrained": str(path)}}
    loaded = build_model(config, 5, embedding=False).backbone
    assert all(
        torch.equal(a, b) for a, b in zip(source.state_dict().values(), loaded.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("config", [RESNET, MIT])
def test_learns_a_separable_picture(config):
    """After a few steps on an image with two halves, the loss is far below chance."""
    torch.manual_seed(0)
    net = build_model(config, 2, embedding=False).train()
    images = torch.full((2, 3, 64, 64), 40.0)
    images[..., 32:] = 210.0
    target = torch.zeros(2, 64, 64, dtype=torch.long)
    target[..., 32:] = 1
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    for _ in range(25):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(images).logits, target)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.25


def test_config_objects_and_dicts_give_the_same():
    class Section:
        def __init__(self, **values):
            self.values = values

        def model_dump(self):
            return self.values

    class Config:
        backbone = Section(type="resnet", depth=18, pretrained=False)
        head = Section(type="ultrafast_segformer", proj_dim=None, dropout=0.3)

    head = create_head(Config(), (64, 128, 256, 512), 4)
    assert head.dropout.p == 0.3
    assert head.classifier.weight.shape == (4, 128, 1, 1)
    assert build_model(Config(), 4, embedding=False).backbone.conv1.weight.shape[0] == 64


@pytest.mark.parametrize(
    ("config", "words"),
    [("cfg.yaml", "expected a loaded config or a dict"), ({"backbon": {}}, "unknown section 'backbon'.*'backbone'")],
)
def test_what_is_not_a_config_is_refused(config, words):
    with pytest.raises(UsageError, match=words):
        build_model(config, 4)


DDP = """
import sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from seghiero_core.model import build_model
rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
for backbone, embedding in (("resnet", True), ("segformer", False), ("convnext", False)):
    torch.manual_seed(rank)
    depth = {"depth": 18} if backbone == "resnet" else {}
    config = {"backbone": {"type": backbone, **depth}, "head": {"type": "aspp"}}
    net = DistributedDataParallel(build_model(config, 3, embedding=embedding, auxiliary=True).train())
    for _ in range(2):  # the second forward raises if the first left a parameter unused
        output = net(255 * torch.rand(1, 3, 40, 70))
        loss = output.logits.mean() + output.auxiliary_logits.mean()
        (loss + output.embedding.mean() if embedding else loss).backward()
    gradient = next(net.parameters()).grad
    other = gradient.clone()
    dist.all_reduce(other)
    assert torch.allclose(other / 2, gradient)
    del net
dist.barrier()  # gloo aborts a process whose peer leaves while they still communicate
dist.destroy_process_group()
"""


def test_distributed_training_finds_no_unused_parameter(tmp_path):
    command = [sys.executable, "-c", DDP]
    store = str(tmp_path / "store")
    others = subprocess.Popen([*command, "1", store], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    try:
        first = subprocess.run([*command, "0", store], env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
        _, errors = others.communicate(timeout=60)
    finally:
        others.kill()
    assert first.returncode == 0, first.stderr
    assert others.returncode == 0, errors
