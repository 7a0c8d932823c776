"""Every backbone with every head gives the same answers as ONNX."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from seghiero_core.export.gates import GATES
from seghiero_core.export.graph import DecodedModel, to_onnx, trace
from seghiero_core.export.options import DEFAULT_OPSET
from seghiero_core.export.parity import measure_parity
from seghiero_core.export.runner import make_session, session_runner
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.model.factories import build_model
from seghiero_core.registry import BACKBONES, HEADS

VARIANTS = [(name, variant) for name in ("resnet", "convnext", "segformer") for variant in BACKBONES.get(name).variants]
ALL = [(*backbone, head) for backbone in VARIANTS for head in HEADS.names()]
SOME = [
    ("resnet", "18", "aspp"),
    ("segformer", "mit-b0", "segformer"),
    ("convnext", "tiny", "ultrafast_segformer"),
]


def check_combination(hierarchy: Hierarchy, backbone: str, variant: str, head: str) -> None:
    torch.manual_seed(0)
    selector = BACKBONES.get(backbone).selector
    config = {"backbone": {"type": backbone, selector: variant}, "head": {"type": head}}
    model = build_model(config, len(hierarchy.leaves), embedding=False)
    rng = np.random.default_rng(0)
    small = [Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)) for _ in range(3)]
    images = [np.asarray(image.resize((480, 360), Image.Resampling.BICUBIC)) for image in small]
    with torch.no_grad():  # random weights give logits near 0; make them as large as a trained network's
        logits = model.eval()(torch.tensor(images[0]).movedim(2, 0)[None]).logits
        model.head.classifier.weight.mul_(20 / logits.abs().max())
    decoded = DecodedModel(model, hierarchy, "softmax", "leaf").eval()
    graph = to_onnx(trace(decoded, torch.uint8), hierarchy, DEFAULT_OPSET)
    measured = measure_parity(session_runner(make_session(graph.SerializeToString())), decoded, images, "uint8")
    print(f"{backbone} {variant} {head}: error {measured.max_abs_error:.1e} of {measured.max_abs_logit:.1f}", end=" ")
    assert measured.max_abs_error <= GATES["fp32"].max_error
    assert min(measured.argmax_agreement.values()) >= GATES["fp32"].min_agreement


@pytest.mark.parametrize(("backbone", "variant", "head"), SOME)
def test_combination(camvid_hierarchy, backbone, variant, head):
    check_combination(camvid_hierarchy, backbone, variant, head)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "variant", "head"), [combination for combination in ALL if combination not in SOME]
)
def test_every_other_combination(camvid_hierarchy, backbone, variant, head):
    check_combination(camvid_hierarchy, backbone, variant, head)


def test_every_backbone_meets_every_head():
    assert len(ALL) == 16 * len(HEADS.names()) == len({*ALL})
