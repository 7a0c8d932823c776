"""Freezing: stages are read off the graph, and what is frozen does not change."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from seghiero_core.config.loading import load_config
from seghiero_core.model.factories import create_backbone
from seghiero_core.training.freezing import backbone_stages, freeze, set_training_mode
from seghiero_core.training.loop import train
from seghiero_core.training.prepare import prepare
from support.stages import expected_stage


@pytest.mark.parametrize(
    "section",
    [
        {"type": "resnet", "depth": 18},
        {"type": "segformer", "variant": "mit-b0", "gradient_checkpointing": True},
        {"type": "convnext", "variant": "tiny"},
    ],
    ids=lambda section: section["type"],
)
def test_stages_are_read_off_the_graph(section):
    backbone = create_backbone({"backbone": section}).train()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    stages = backbone_stages(backbone)
    assert stages == {name: expected_stage(name) for name, _ in backbone.named_parameters()}
    assert all(module.training for module in backbone.modules())
    assert all(tensor.equal(before[name]) for name, tensor in backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in backbone.parameters())


@pytest.mark.parametrize("how", [2, "backbone"])
def test_frozen_stages_learn_nothing_and_keep_their_statistics(small, how):
    options = [f"training.freeze={how}", "training.epochs=1"]
    config = load_config(small, options)
    torch.manual_seed(config.training.seed)
    start = prepare(config).model.state_dict()
    start = {name: tensor.clone() for name, tensor in start.items()}
    train(config)
    end = load_file(config.run_dir / "last/model.safetensors")
    frozen = ("bn1", "conv1", "layer1", "layer2") if how == 2 else ("",)
    for name, tensor in end.items():
        if name.startswith(tuple(f"backbone.{part}" for part in frozen)):
            assert tensor.equal(start[name]), name
        elif name.endswith(("weight", "running_mean")):
            assert not tensor.equal(start[name]), name


def test_freeze_norm_keeps_statistics_and_trains_weights(small):
    config = load_config(small, ["training.freeze_norm=true", "training.epochs=1"])
    start = {name: tensor.clone() for name, tensor in prepare(config).model.state_dict().items()}
    train(config)
    end = load_file(config.run_dir / "last/model.safetensors")
    assert end["backbone.bn1.running_mean"].equal(start["backbone.bn1.running_mean"])
    assert not end["backbone.bn1.weight"].equal(start["backbone.bn1.weight"])


def test_training_mode_without_freezing_is_that_of_pytorch():
    model = nn.ModuleDict({"backbone": nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Dropout())}).eval()
    freeze(model, 0)
    set_training_mode(model, freeze_norm=False)
    assert all(module.training for module in model.modules())
    freeze(model, "backbone")
    set_training_mode(model, freeze_norm=False)
    assert not any(module.training for module in model["backbone"].modules())
