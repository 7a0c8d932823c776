"""The conformance suite on a head's further outputs and its own loss."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.losses.combine import build_loss
from seghiero_core.model.segmentation import SegmentationModel
from seghiero_core.registry import IMAGENET
from seghiero_core.testing.behavior import Pyramid
from seghiero_core.testing.head_loss import head_loss_problems
from seghiero_core.testing.shapes import NUM_CLASSES as LEAVES
from support.processes import ROOT

CHANNELS = (8, 12, 16, 20)


class WithLoss(nn.Module):
    """A head whose further output are scores for where there is a label; `fault` names what it does wrong."""

    def __init__(self, fault: str = ""):
        super().__init__()
        self.fault = fault
        self.classifier, self.known = nn.Conv2d(CHANNELS[0], LEAVES, 1), nn.Conv2d(CHANNELS[0], LEAVES, 1)
        if fault == "no loss":
            self.loss = None

    def forward(self, features):
        outputs = {"known": self.known(features[0])}
        if self.fault == "list":
            outputs = list(outputs.values())
        if self.fault == "no batch":
            outputs["known"] = outputs["known"][0]
        return self.classifier(features[0]), None, outputs

    def loss(self, outputs, target, hierarchy, *, counts=None):
        if self.fault == "error":
            raise RuntimeError("boom")
        known = target[:, ::4, ::4] >= 0
        scores = outputs["known"].logsumexp(1) * (1 if self.fault == "ignored" else known)
        pixels = (target >= 0).sum() if counts is None or self.fault == "counts" else counts[:, :-1].sum()
        value = scores.sum() / pixels.clamp(min=1)
        if self.fault == "infinite":
            value = value / 0
        return {"known": (2.0, value.detach() if self.fault == "gradient" else value)}


def features(images=2):
    return [torch.randn(images, c, 48 // s, 64 // s) for c, s in zip(CHANNELS, (1, 2, 4, 8), strict=True)]


@pytest.mark.parametrize(
    ("fault", "explanation"),
    [
        ("list", "the third value of forward is a list, expected a dict of tensors"),
        ("no batch", "further outputs without the batch as their first dimension: known"),
        ("no loss", "has no method loss(outputs, target, hierarchy, *, counts)"),
        ("error", "its loss failed: RuntimeError: boom"),
        ("infinite", "loss 'known' is "),
        ("gradient", "loss 'known' has no gradient for any parameter of the head"),
        ("ignored", "where all pixels are ignored, expected 0"),
        ("counts", "divide sums by numbers that follow from `counts`"),
    ],
)
def test_each_fault_is_explained(fault, explanation):
    torch.manual_seed(0)
    assert any(explanation in problem for problem in head_loss_problems(WithLoss(fault), features()))


def test_no_faults_are_found_in_a_good_head_or_in_one_without_a_loss():
    torch.manual_seed(0)
    assert list(head_loss_problems(WithLoss(), features())) == []

    class Plain(WithLoss):
        def forward(self, features):
            return super().forward(features)[:2]

    assert list(head_loss_problems(Plain(), features())) == []


def test_no_faults_are_found_in_the_example_of_the_documentation():
    page = (ROOT / "docs" / "plugins.md").read_text()
    (code,) = [block for block in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S) if "EdgeHead" in block]
    names: dict = {"nn": nn, "torch": torch}
    exec(compile(code, "plugins.md", "exec"), names)
    torch.manual_seed(0)
    assert list(head_loss_problems(names["EdgeHead"](CHANNELS[0], LEAVES), features())) == []


def test_a_model_returns_the_outputs_and_the_loss_adds_its_terms():
    mean, std = IMAGENET
    head = WithLoss()
    model = SegmentationModel(Pyramid(CHANNELS), head, mean=mean, std=std, stride=32)
    hierarchy = Hierarchy.from_config({"labels": [f"class{i}" for i in range(LEAVES)]})
    output = model(torch.randint(0, 256, (2, 3, 33, 40), dtype=torch.uint8))
    assert output.head_outputs["known"].shape == (2, LEAVES, 16, 16)  # with the padding
    target = torch.zeros(2, 64, 64, dtype=torch.int64)
    section = {"preset": "flat"}
    logits = torch.nn.functional.pad(output.logits, (0, 24, 0, 31))
    before, _ = build_loss(section, hierarchy)(logits, target)
    loss = build_loss(section, hierarchy, head_loss=head.loss)
    total, terms = loss(logits, target, head_outputs=output.head_outputs)
    assert terms.keys() == {"leaf_cross_entropy", "head_known"}
    torch.testing.assert_close(total, before + 2 * terms["head_known"])
    with pytest.raises(ValueError, match="build_loss"):
        build_loss(section, hierarchy)(logits, target, head_outputs=output.head_outputs)
