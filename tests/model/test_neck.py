"""The parts of a neck that a head has no use for don't learn, and nothing else changes."""

from __future__ import annotations

import pytest
import torch

from seghiero_core.model.factories import build_model
from seghiero_core.training.freezing import freeze

VIT = {"type": "timm", "variant": "vit_tiny_patch16_224"}


def without_gradient(model):
    model.train()
    output = model(torch.randint(0, 256, (2, 3, 70, 64), dtype=torch.uint8))
    auxiliary = 0 if output.auxiliary_logits is None else output.auxiliary_logits.sum()
    (output.logits.sum() + auxiliary).backward()
    return {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}


@pytest.mark.parametrize(
    ("head", "auxiliary", "unread"), [("aspp", False, "12"), ("aspp", True, "1"), ("segformer", False, "")]
)
def test_every_parameter_that_learns_has_a_gradient(head, auxiliary, unread):
    model = build_model({"backbone": VIT, "head": {"type": head, "proj_dim": 16}}, 3, auxiliary=auxiliary)
    frozen = {name.split(".")[3] for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == set(unread)  # aspp reads C1 and C4, and the auxiliary head C3
    assert not without_gradient(model)


@pytest.mark.parametrize("how", ["backbone", 2])
def test_freezing_the_backbone_does_not_wake_them(how):
    model = build_model({"backbone": VIT, "head": {"type": "aspp", "proj_dim": 16}}, 3)
    freeze(model, how)
    assert not without_gradient(model)
    assert any(p.requires_grad for p in model.backbone.neck.levels[0].parameters())


def test_building_a_model_uses_the_random_generator_as_its_parts_do():
    torch.manual_seed(0)
    first = build_model({"backbone": VIT, "head": {"type": "aspp", "proj_dim": 16}}, 3)
    after = torch.rand(1)
    torch.manual_seed(0)
    second = build_model({"backbone": VIT, "head": {"type": "aspp", "proj_dim": 16}}, 3)
    assert torch.equal(after, torch.rand(1))
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    assert all(value == 0 for name, value in first.state_dict().items() if name.endswith("num_batches_tracked"))
