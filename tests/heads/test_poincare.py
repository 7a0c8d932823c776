"""The hyperbolic classifier against the operations of the Poincaré ball, written out in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from seghiero_core.heads.networks.poincare import PoincareClassifier
from seghiero_core.model.factories import create_head


def classifier(curvature, channels=6, classes=4, dtype=torch.float64):
    torch.manual_seed(0)
    module = PoincareClassifier(nn.Conv2d(channels, classes, 1), curvature).to(dtype)
    torch.nn.init.normal_(module.weight)
    torch.nn.init.normal_(module.bias, std=0.4)
    return module


def exp_at_0(v, c):
    norm = np.linalg.norm(v)
    return np.tanh(np.sqrt(c) * norm) * v / (np.sqrt(c) * norm)


def mobius_sum(x, y, c):
    xy, xx, yy = x @ y, x @ x, y @ y
    return ((1 + 2 * c * xy + c * yy) * x + (1 - c * xx) * y) / (1 + 2 * c * xy + c**2 * xx * yy)


def ganea(x, normal, offset, c):
    """Eq. 25 of Ganea et al. for one class: `normal` is in the tangent space at 0, and moved to the point p."""
    p = exp_at_0(-offset * normal / np.linalg.norm(normal), c)
    at_p = 2 / (1 - c * p @ p)
    a = 2 / at_p * normal
    from_p = mobius_sum(-p, x, c)
    ratio = 2 * np.sqrt(c) * (from_p @ a) / ((1 - c * from_p @ from_p) * np.linalg.norm(a))
    return at_p * np.linalg.norm(a) / np.sqrt(c) * np.arcsinh(ratio)


@pytest.mark.parametrize("curvature", [0.1, 1.0, 4.0])
def test_equals_the_formula_of_ganea(curvature):
    module = classifier(curvature)
    features = torch.randn(2, 6, 3, 4, dtype=torch.float64) * torch.linspace(0.05, 1, 12, dtype=torch.float64).view(
        3, 4
    )
    logits = module(features).detach().numpy()
    weight, bias = module.weight.detach().numpy(), module.bias.detach().numpy()
    for b, row, column in np.ndindex(2, 3, 4):
        x = features[b, :, row, column].numpy()
        x = exp_at_0(x / max(1, np.linalg.norm(x)), curvature)
        expected = [ganea(x, z.ravel(), offset, curvature) for z, offset in zip(weight, bias, strict=True)]
        np.testing.assert_allclose(logits[b, :, row, column], expected, rtol=1e-9)


def test_without_curvature_it_is_4_times_a_linear_classifier():
    module = classifier(1e-8)
    features = torch.randn(1, 6, 2, 2, dtype=torch.float64) / 10
    norm = module.weight.flatten(1).norm(dim=1)
    linear = torch.nn.functional.conv2d(features, module.weight, norm * module.bias)
    torch.testing.assert_close(module(features), 4 * linear, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [0.0, 1e-20, 1e4])
def test_finite_for_features_of_any_size(dtype, size):
    module = classifier(10.0, dtype=dtype)
    features = (torch.rand(1, 6, 2, 2) * size).to(dtype).requires_grad_()
    logits = module(features)
    assert logits.dtype == dtype and logits.isfinite().all()
    logits.float().square().sum().backward()
    for gradient in (features.grad, module.weight.grad, module.bias.grad):
        assert gradient.isfinite().all()


def test_finite_for_hyperplanes_at_any_distance():
    module = classifier(10.0, dtype=torch.float32)
    with torch.no_grad():
        module.bias.fill_(20.0)
    logits = module(torch.rand(1, 6, 2, 2))
    logits.sum().backward()
    assert logits.isfinite().all() and module.weight.grad.isfinite().all()


def test_autocast_computes_in_float32():
    module = classifier(1.0, dtype=torch.float32)
    features = torch.randn(1, 6, 2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        found = module(features)
    torch.testing.assert_close(found.double(), module.double()(features.double()), rtol=1e-5, atol=1e-5)


def test_gradient():
    module = classifier(1.0)
    features = torch.randn(1, 6, 1, 2, dtype=torch.float64) * torch.tensor([0.1, 3.0], dtype=torch.float64)
    arguments = (features.requires_grad_(), *module.parameters())

    def call(x, weight, bias):
        return torch.func.functional_call(module, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(call, arguments)


def test_the_head_has_the_parameters_of_aspp():
    heads = [create_head({"head": {"type": name}}, (24, 32, 48, 64), 5) for name in ("aspp", "poincare")]
    shapes = [{name: tensor.shape for name, tensor in head.state_dict().items()} for head in heads]
    assert shapes[0] == shapes[1]
    head = create_head({"head": {"type": "poincare", "curvature": 0.5, "dilations": [1, 2, 5]}}, (24, 32, 48, 64), 5)
    assert head.classifier.curvature == 0.5 and head.branches[3][0].dilation == (5, 5)
