"""A training step and an export of models of timm, for each kind of strides, by the same means as a user's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from seghiero_core import load
from seghiero_core.config.loading import load_config
from seghiero_core.export.options import ExportOptions
from seghiero_core.export.single_file import export_checkpoint
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.losses.combine import build_loss
from seghiero_core.model.factories import build_model
from seghiero_core.training.loop import train
from seghiero_core.training.optimizer import make_optimizer
from support.tiny import save_untrained

KINDS = {
    "test_vit": "all maps have stride 16",
    "swin_tiny_patch4_window7_224": "channels-last",
    "levit_128s": "16, 32, 64, in windows",
    "pit_ti_224": "8, 16, 32 that aren't exact, in windows",
    "test_efficientnet": "2 to 32",
    "vgg11": "1 to 32",
    "hrnet_w18_small": "maps that all depend on each other",
    "eva02_tiny_patch14_224": "patches of 14 px",
}
FAST = {"test_vit", "test_efficientnet", "levit_128s"}
FAST_EXPORT = {"test_vit"}


def variants(fast: set[str]) -> list:
    return [pytest.param(name, marks=() if name in fast else pytest.mark.slow) for name in KINDS]


def section(variant: str) -> list[str]:
    return [f"backbone={{type: timm, variant: {variant}}}"]


@pytest.mark.parametrize("variant", variants(FAST))
def test_a_training_step_changes_every_parameter(small, variant):
    config = load_config(small, section(variant))
    hierarchy = Hierarchy.from_config(config.classes)
    loss = build_loss({**config.loss, "class_weights": None}, hierarchy)
    torch.manual_seed(0)
    model = build_model(config, loss.num_channels, embedding=loss.uses_embedding).train()
    for parameter in model.parameters():  # some blocks start as identities: what is inside would have no gradient
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    optimizer = make_optimizer(model, config.training, pretrained=False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    images, target = 255 * torch.rand(2, 3, 97, 131), torch.randint(0, len(hierarchy.leaves), (2, 97, 131))
    output = model(images)
    assert output.logits.shape == (2, loss.num_channels, 97, 131)
    value, _ = loss(output.logits, target, embedding=output.embedding)
    value.backward()
    optimizer.step()
    assert torch.isfinite(value)
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert [name for name, p in model.named_parameters() if not p.isfinite().all()] == []
    assert sum(not p.equal(before[name]) for name, p in model.named_parameters()) > 0.9 * len(before)


@pytest.mark.parametrize("variant", variants(FAST_EXPORT))
def test_an_export_segments_as_the_network_at_any_size(small, variant):
    config = save_untrained(small, section(variant))
    path = small.parent / "model.onnx"
    export_checkpoint(config.run_dir / "best", path, ExportOptions())
    network, exported = load(config.run_dir, device="cpu"), load(path, device="cpu")
    rng = np.random.default_rng(0)
    for height, width in ((48, 64), (97, 131), (224, 224)):
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        expected, found = network(image), exported(image)
        for level, ids in expected.ids.items():
            assert (found.ids[level] == ids).mean() > 0.99, (level, height, width)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["test_vit", "test_efficientnet"])
def test_a_run_starts_from_another_run(small, variant):
    """`train` with frozen stages and layer decay, then `init_from` and `pretrained` with the run."""
    options = [*section(variant), "training.epochs=1", "training.freeze=1", "training.layer_decay=0.8"]
    first = load_config(small, options)
    train(first)
    for key in (f"init_from={first.run_dir}", f"backbone.pretrained={first.run_dir}"):
        events = []
        second = load_config(small, [*options, f"output.name={key[:4]}", key])
        train(second, notify=events.append)
        (report,) = [event for event in events if event["event"] == "weights"]
        assert report["coverage"] == 1
        assert [name for name in report["missing"] if "neck" in name] == []
