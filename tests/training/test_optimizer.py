"""Learning rates by group and by step, and the moving average of the weights."""

from __future__ import annotations

import copy

import pytest
import torch

from seghiero_core.config.schema import TrainingConfig
from seghiero_core.model.factories import build_model
from seghiero_core.training.optimizer import WeightAverage, lr_factor, make_optimizer, start_momentum
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
    factors = [lr_factor(step, 100, TrainingConfig(warmup=0.1, power=0.9)) for step in range(100)]
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


def test_cosine_and_constant_schedules():
    cosine = [lr_factor(step, 100, TrainingConfig(schedule="cosine", warmup=0.1)) for step in range(100)]
    constant = [lr_factor(step, 100, TrainingConfig(schedule="constant", warmup=0.1)) for step in range(100)]
    assert cosine[50] == pytest.approx(0.5) and cosine[25] == pytest.approx(0.5 + 0.5**1.5)
    assert max(cosine) == cosine[9] and 0 < cosine[99] < 0.001
    assert constant[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)]) and set(constant[10:]) == {1.0}


def test_sgd_with_its_momentum_started_equals_that_of_pytorch():
    torch.manual_seed(0)
    models = [torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))]
    models.append(copy.deepcopy(models[0]))
    optimizer = make_optimizer(models[0], TrainingConfig(optimizer="sgd", lr=0.1, weight_decay=0.1), pretrained=False)
    start_momentum(optimizer)
    decay = [{"params": [models[1][0].weight], "weight_decay": 0.1}]
    reference = torch.optim.SGD([*decay, {"params": [models[1][0].bias, *models[1][1].parameters()]}], 0.1, 0.9)
    for step in range(4):
        x = torch.randn(5, 3)
        for model, optimizer_of in zip(models, (optimizer, reference), strict=True):
            if step != 1:  # no gradient, as in a step that is skipped
                model(x).square().sum().backward()
            optimizer_of.step()
            optimizer_of.zero_grad()
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_first_step_that_the_gradient_scaler_skips_leaves_the_momentum_at_zero():
    model = torch.nn.Linear(3, 4)
    optimizer = make_optimizer(model, TrainingConfig(optimizer="sgd"), pretrained=False)
    start_momentum(optimizer)
    optimizer.grad_scale, optimizer.found_inf = torch.ones(()), torch.ones(())  # what the scaler hands to fused kernels
    model.weight.grad = torch.full_like(model.weight, torch.inf)
    before = model.weight.clone()
    optimizer.step()
    assert torch.equal(model.weight, before)
    assert not optimizer.state[model.weight]["momentum_buffer"].any()


def test_a_power_that_the_schedule_has_not_is_an_error():
    with pytest.raises(ValueError, match="the cosine schedule has no power; remove this key"):
        TrainingConfig(schedule="cosine", power=2.0)
    assert TrainingConfig(schedule="cosine", power=0.9)  # as a run writes it into its config.yaml
