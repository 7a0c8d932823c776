"""The built-in heads, compared with transformers, on every backbone, and the conformance suite."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from seghiero_core.errors import CheckFailed, UsageError
from seghiero_core.heads.networks.layers import DepthwiseConv
from seghiero_core.model.factories import build_model, create_backbone, create_head
from seghiero_core.registry import BACKBONES, HEADS, register_head
from seghiero_core.testing.conformance import check_head

BUILT_IN = {
    "aspp": 256,
    "poincare": 256,
    "mask_query": 128,
    "segformer": 256,
    "ultrafast_segformer": 128,
    "extremely_fast_segformer": 64,
    "linear": 64,
}
CHANNELS = (24, 32, 48, 64)


def pyramid(batch=2, height=97, width=131, channels=CHANNELS) -> list[torch.Tensor]:
    return [
        torch.randn(batch, c, -(-height // s), -(-width // s)) for c, s in zip(channels, (4, 8, 16, 32), strict=True)
    ]


@pytest.fixture(scope="module")
def published() -> SegformerForSemanticSegmentation:
    """A SegFormer of transformers with weights and statistics unlike their initial values."""
    torch.manual_seed(0)
    model = SegformerForSemanticSegmentation(SegformerConfig(num_labels=11)).eval()
    for parameter in model.decode_head.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    norm = model.decode_head.batch_norm
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return model


@pytest.mark.parametrize("name", BUILT_IN)
def test_conformance(name):
    check_head(name)


def test_names_and_widths_are_those_of_the_guide():
    assert {name: HEADS.get(name).proj_dim for name in BUILT_IN} == BUILT_IN
    assert all(HEADS.get(name).summary for name in BUILT_IN)


@pytest.mark.parametrize(
    ("backbone", "variant"), [(n, v) for n in ("convnext", "resnet", "segformer") for v in BACKBONES.get(n).variants]
)
def test_every_head_accepts_every_backbone(backbone, variant):
    """Logits at C1's size, embeddings and a gradient for every parameter, on the meta device."""
    config = {"backbone": {"type": backbone, BACKBONES.get(backbone).selector: variant}}
    with torch.device("meta"):
        net = create_backbone(config).train()
        features = net(torch.empty(2, 3, 97, 131))
        again = create_backbone(config)
        again.load_state_dict(net.state_dict())
        for head, proj_dim in BUILT_IN.items():
            module = create_head({**config, "head": {"type": head}}, [f.shape[1] for f in features], 7)
            logits, embedding, *_ = module(features)
            assert logits.shape == (2, 7, *features[0].shape[2:])
            assert embedding.shape[:2] == (2, proj_dim)
            net.zero_grad(set_to_none=True)
            (logits.sum() + embedding.sum()).backward(retain_graph=True)
            assert [n for m in (net, module) for n, p in m.named_parameters() if p.grad is None] == []
            twin = create_head({**config, "head": {"type": head}}, [f.shape[1] for f in features], 7)
            twin.load_state_dict(module.state_dict())


@pytest.mark.parametrize("head", BUILT_IN)
@pytest.mark.parametrize("width", [None, 16])
def test_embedding_has_unit_length(head, width):
    torch.manual_seed(0)  # with other weights, all 16 channels of a pixel may be 0 after the ReLU
    module = create_head({"head": {"type": head, "proj_dim": width}}, CHANNELS, 3)
    _, embedding, *_ = module(pyramid())
    assert embedding.shape[1] == (width or BUILT_IN[head])
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones_like(embedding[:, 0]))


@pytest.mark.parametrize("head", BUILT_IN)
def test_without_embedding_there_are_fewer_parameters_and_the_same_logits(head):
    config = {"head": {"type": head}}
    full = create_head(config, CHANNELS, 3).eval()
    bare = create_head(config, CHANNELS, 3, embedding=False).eval()
    state = full.state_dict()
    assert set(state) - set(bare.state_dict()) == {key for key in state if key.startswith("embedding.")} != set()
    bare.load_state_dict({key: state[key] for key in bare.state_dict()})
    features = pyramid()
    with torch.no_grad():
        logits, embedding = bare(features)
        assert embedding is None
        torch.testing.assert_close(logits, full(features)[0])


def load_decoder(head: nn.Module, published: nn.Module) -> None:
    """Copy the decoder of a transformers SegFormer into our head, which has only the embedding in addition."""
    state = {key.replace(".proj.", "."): value for key, value in published.decode_head.state_dict().items()}
    missing, unexpected = head.load_state_dict(state, strict=False)
    assert not unexpected and all(key.startswith("embedding.") for key in missing)


def test_segformer_head_equals_transformers(published):
    head = create_head({"head": {"type": "segformer"}}, (32, 64, 160, 256), 11)
    load_decoder(head, published)
    features = pyramid(channels=(32, 64, 160, 256))
    with torch.no_grad():
        torch.testing.assert_close(head.eval()(features)[0], published.decode_head(features), atol=1e-4, rtol=1e-4)


def test_segformer_head_trains_as_transformers_does(published):
    """In training mode too: the same logits, gradients and running statistics."""
    head = create_head({"head": {"type": "segformer", "dropout": 0.0}}, (32, 64, 160, 256), 11, embedding=False)
    load_decoder(head, published)
    theirs = SegformerForSemanticSegmentation(SegformerConfig(num_labels=11, classifier_dropout_prob=0.0)).decode_head
    theirs.load_state_dict(published.decode_head.state_dict())
    features = pyramid(channels=(32, 64, 160, 256))
    ours_out, theirs_out = head.train()(features)[0], theirs.train()(features)
    torch.testing.assert_close(ours_out, theirs_out, atol=1e-4, rtol=1e-4)
    ours_out.square().mean().backward()
    theirs_out.square().mean().backward()
    names = dict(head.named_parameters())
    for key, parameter in theirs.named_parameters():
        grad = names[key.replace(".proj.", ".")].grad
        torch.testing.assert_close(grad, parameter.grad, atol=1e-4, rtol=1e-3, msg=lambda t, key=key: f"{key}: {t}")
    torch.testing.assert_close(head.batch_norm.running_var, theirs.batch_norm.running_var)
    torch.testing.assert_close(head.batch_norm.running_mean, theirs.batch_norm.running_mean, atol=1e-5, rtol=1e-4)


def test_whole_segformer_equals_transformers_end_to_end(published):
    config = {"backbone": {"type": "segformer"}, "head": {"type": "segformer"}}
    model = build_model(config, 11, embedding=False).eval()
    model.backbone.load_state_dict(published.segformer.state_dict())
    load_decoder(model.head, published)
    images = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).reshape(2, 1, 3, 1, 1)
    with torch.no_grad():
        expected = published((images / 255 - mean) / std).logits
        expected = F.interpolate(expected, size=(64, 96), mode="bilinear", align_corners=False)
        torch.testing.assert_close(model(images).logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("stride", "expected"), [(8, [12, 24, 36]), (16, [6, 12, 18]), (32, [3, 6, 9])])
def test_dilations_fit_the_output_stride(stride, expected):
    def dilations(**options):
        config = {"backbone": {"type": "resnet", "output_stride": stride}, "head": {"type": "aspp", **options}}
        return [branch[0].dilation[0] for branch in create_head(config, CHANNELS, 3).branches[1:]]

    assert dilations() == expected
    assert dilations(dilations=[1, 2, 5]) == [1, 2, 5]


def test_aspp_pools_each_image_separately():
    """In eval mode, an image's logits don't depend on the other images of its batch."""
    head = create_head({"head": {"type": "aspp"}}, CHANNELS, 3).eval()
    features = pyramid(batch=3)
    with torch.no_grad():
        together = head(features)[0]
        alone = head([f[1:2] for f in features])[0]
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=1e-5)


def test_aspp_trains_on_one_image():
    head = create_head({"head": {"type": "aspp"}}, CHANNELS, 3).train()
    logits, embedding = head(pyramid(batch=1))
    (logits.sum() + embedding.sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())


def test_unknown_options_suggest_the_nearest():
    with pytest.raises(UsageError, match="Did you mean 'aspp'"):
        create_head({"head": {"type": "asp"}}, CHANNELS, 3)
    with pytest.raises(UsageError, match="Did you mean 'dropout'"):
        create_head({"head": {"type": "aspp", "drop_out": 0.5}}, CHANNELS, 3)
    with pytest.raises(UsageError, match="embedding: unknown key"):
        create_head({"head": {"type": "aspp", "embedding": False}}, CHANNELS, 3)


class Faulty(torch.nn.Module):
    """A head with one fault."""

    def __init__(self, channels, num_classes, proj_dim, fault):
        super().__init__()
        self.fault = fault
        self.classify = torch.nn.Conv2d(channels[0], num_classes, 1)
        self.project = torch.nn.Conv2d(channels[0], proj_dim, 1)

    def forward(self, features):
        logits, embedding = self.classify(features[0]), self.project(features[0])
        if self.fault == "single":
            return logits
        if self.fault == "size":
            logits = F.avg_pool2d(logits, 2)
        return logits, embedding if self.fault == "length" else F.normalize(embedding, dim=1)


@pytest.mark.parametrize(
    ("fault", "explanation"),
    [
        ("single", r"expected the pair \(logits, embedding\)"),
        ("size", r"the logits have shape \(1, 5, 12, 16\), expected \(1, 5, 25, 33\)"),
        ("length", "does not have unit length"),
        ("ignores embedding", "with embedding=False it still returns an embedding"),
    ],
)
def test_each_fault_is_explained(fault, explanation):
    def build(in_channels_list, num_classes, proj_dim):
        return Faulty(in_channels_list, num_classes, proj_dim, fault)

    try:
        register_head("faulty", proj_dim=16)(build)
        with pytest.raises(CheckFailed, match=explanation):
            check_head("faulty")
    finally:
        HEADS.entries.pop("faulty", None)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dilation", [1, 2, 3, 7, 12])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 7), (13, 8), (24, 25)])
def test_dilated_depthwise_convolutions_are_those_of_pytorch(size, dilation, memory_format):
    torch.manual_seed(0)
    layer = DepthwiseConv(6, dilation).double()
    x = torch.randn(2, 6, *size, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    weight = layer.weight.detach().clone().requires_grad_()
    expected = F.conv2d(x, weight, padding=dilation, dilation=dilation, groups=6)
    gradient = torch.randn_like(expected)
    found = layer(x)
    torch.testing.assert_close(found, expected)
    expected_gradients = torch.autograd.grad(expected, (x, weight), gradient)
    for a, b in zip(torch.autograd.grad(found, (x, layer.weight), gradient), expected_gradients, strict=True):
        torch.testing.assert_close(a, b)
