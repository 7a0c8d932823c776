"""Learning rates by group and by step, and the moving average of the weights."""

from __future__ import annotations

import pytest
import torch

from seghiero_core.config.schema import TrainingConfig
from seghiero_core.model.factories import build_model
from seghiero_core.training.optimizer import WeightAverage, lr_factor, make_optimizer
from support.stages import expected_stage


def test_every_stage_learns_at_a_share_of_the_next_ones_rate():
    sections = {"backbone": {"type": "resnet", "depth": 18}, "head": {"type": "extremely_fast_segformer"}}
    model = build_model(sections, 3, embedding=False)
    training = TrainingConfig(lr=1.0, layer_decay=0.5)
    rates = {p: g["lr"] for g in make_optimizer(model, training, pretrained=True).param_groups for p in g["params"]}
    for name, parameter in model.named_parameters():
        if name.startswith("backbone."):
            stage = expected_stage(name.removeprefix("backbone."))
            assert rates[parameter] == pytest.approx(0.1 * 0.5 ** (4 - stage)), name
        else:
            assert rates[parameter] == 1.0, name


def test_poly_decay_with_warm_up():
    factors = [lr_factor(step, 100, warmup=0.1, power=0.9) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[9]
    assert factors[50] == pytest.approx(0.5**0.9)
    assert 0 < factors[99] < 0.02


def test_parameter_groups_spare_norms_and_slow_a_pretrained_backbone():
    model = torch.nn.ModuleDict({"backbone": torch.nn.Conv2d(3, 4, 1), "head": torch.nn.BatchNorm2d(4)})
    groups = make_optimizer(model, TrainingConfig(lr=1.0), pretrained=True).param_groups
    assert [(g["lr"], g["weight_decay"], len(g["params"])) for g in groups] == [
        (0.1, 0.01, 1),
        (0.1, 0.0, 1),
        (1.0, 0.0, 2),
    ]


def test_the_running_average_follows_its_formula():
    model = torch.nn.BatchNorm1d(1)
    average = WeightAverage(model, decay=0.5)
    weight, mean = model.weight.item(), model.running_mean.item()
    for n in range(6):
        with torch.no_grad():
            model.weight.fill_(n)
            model.running_mean.fill_(-n)
            model.num_batches_tracked.fill_(n)
        average.update(model)
        decay = min(0.5, (1 + n) / (10 + n))
        weight, mean = decay * weight + (1 - decay) * n, decay * mean - (1 - decay) * n
    assert average.model.weight.item() == pytest.approx(weight)
    assert average.model.running_mean.item() == pytest.approx(mean)
    assert average.model.num_batches_tracked == 5
