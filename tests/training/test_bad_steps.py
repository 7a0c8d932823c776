"""Bad steps are skipped without a trace, counted, and stop the run when there are too many."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch
from safetensors.torch import load_file

from seghiero_core.checkpoint import read_checkpoint
from seghiero_core.config.loading import load_config
from seghiero_core.errors import DeviceError, UsageError
from seghiero_core.losses.combine import HierarchicalLoss
from seghiero_core.training import prepare as prepare_module
from seghiero_core.training.bad_steps import MicroBatch, is_bad_step
from seghiero_core.training.loop import train
from seghiero_core.training.prepare import prepare
from support.tiny import TINY


@pytest.fixture
def poisoned(monkeypatch):
    """`poisoned(steps)`: the loss of these steps (from 0) is made NaN by its term `marginal_cross_entropy`."""
    call, count = HierarchicalLoss.__call__, iter(range(10**6))

    def poison(steps):
        def spoiled(self, *arguments, **options):
            total, terms = call(self, *arguments, **options)
            if next(count) in steps:
                terms["marginal_cross_entropy"] = total.detach() * math.nan
                total = total * math.nan
            return total, terms

        monkeypatch.setattr(HierarchicalLoss, "__call__", spoiled)

    return poison


def test_a_bad_step_is_skipped_and_reported(small, poisoned):
    poisoned({1})
    config = load_config(small, ["training.batch_size=1", "training.epochs=1", "training.ema=0.5"])
    events = []
    train(config, notify=events.append)
    warnings = [event["text"] for event in events if event["event"] == "warning"]
    assert warnings == ["step 2 was skipped: loss term marginal_cross_entropy is not finite (1 of 10)."]
    records = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [record.get("loss") is None for record in records] == [False, True, False, False, True]
    assert all(tensor.isfinite().all() for tensor in load_file(config.run_dir / "last/model.safetensors").values())
    assert not (config.run_dir / "bad_batch.json").exists()


@pytest.mark.parametrize(
    "loss", ["{}", "{terms: {leaf_cross_entropy: 1, region_mutual_information: 1}}", "{preset: logicseg}"]
)
def test_a_bad_image_leaves_no_trace(small, monkeypatch, loss):
    from seghiero_core.training import loop as module

    batches = module.batches

    def one_infinite(loader):
        for number, batch in enumerate(batches(loader)):
            if number == 1:
                batch["image"] = batch["image"].float()
                batch["image"][0, 0, 0, 0] = math.inf
            yield batch

    monkeypatch.setattr(module, "batches", one_infinite)
    config = load_config(small, ["training.batch_size=1", "training.epochs=1", f"loss={loss}"])
    events = []
    train(config, notify=events.append)
    (warning,) = [event["text"] for event in events if event["event"] == "warning"]
    assert re.match(r"step 2 was skipped: loss term \w+ is not finite \(1 of 10\)", warning)
    tensors = load_file(config.run_dir / "last/model.safetensors")
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert {int(value) for name, value in tensors.items() if name.endswith("num_batches_tracked")} == {3}


def test_too_many_bad_steps_stop_the_run_and_name_the_batch(small, poisoned):
    poisoned({4, 6, 7})
    config = load_config(small, ["training.batch_size=1", "training.max_bad_steps=3", "training.epochs=3"])
    with pytest.raises(DeviceError, match="cross_entropy is not finite at step 8.*first, at step 5") as caught:
        train(config)
    assert caught.value.exit_code == 4
    document = json.loads((config.run_dir / "bad_batch.json").read_text())
    assert document["first"] == {"step": 5, "what": "loss term marginal_cross_entropy is not finite"}
    (batch,) = document["batches"]
    assert batch["terms"].pop("marginal_cross_entropy") == "nan"
    assert all(math.isfinite(value) for value in batch["terms"].values())
    (image,) = batch["images"]
    assert image in {str(small.parent / f"train/images/{i}.png") for i in range(4)}


class Scaler:
    def __init__(self, scale):
        self.scale = scale

    def get_scale(self):
        return self.scale


@pytest.mark.parametrize(
    ("loss", "norm", "scale", "bad"),
    [
        (1.0, 1.0, None, False),
        (1.0, math.inf, None, True),
        (math.nan, 1.0, None, True),
        (1.0, math.inf, 65536.0, False),  # the scaler looks for its scale
        (1.0, math.nan, 0.5, True),  # and has found none
        (math.inf, math.inf, 65536.0, True),
    ],
)
def test_steps_that_the_gradient_scaler_skips_by_itself_are_not_bad(small, loss, norm, scale, bad):
    run = prepare(load_config(small))
    run.accelerator.scaler = None if scale is None else Scaler(scale)
    passes = [MicroBatch(torch.tensor([0]), {"a": torch.tensor(loss)})]
    assert is_bad_step(run, passes, norm) == bad


@pytest.fixture
def scaled(monkeypatch):
    """A gradient scaler on the CPU, whose first scale makes every gradient overflow."""
    make = prepare_module.make_accelerator

    def with_scaler(*arguments, **options):
        accelerator = make(*arguments, **options)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100, backoff_factor=2.0**-90)
        accelerator.native_amp, accelerator.state._mixed_precision = True, "fp16"
        return accelerator

    monkeypatch.setattr(prepare_module, "make_accelerator", with_scaler)


@pytest.mark.parametrize("clip_norm", ["null", "1.0"])
def test_a_step_that_the_gradient_scaler_skips_does_not_move_the_average(small, scaled, clip_norm):
    options = [*TINY, "training.batch_size=1", "training.epochs=1", "training.ema=0.9", "training.max_bad_steps=1"]
    config = load_config(small, [*options, f"training.clip_norm={clip_norm}"])
    train(config)
    records = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    skipped = [record["grad_norm"] is None for record in records if record["event"] == "step"]
    assert skipped == [True, False, False, False]
    tensors, saved = read_checkpoint(config.run_dir / "last").training_state()
    assert {int(value) for name, value in tensors.items() if name.endswith("/step")} == {3}
    assert saved["average_updates"] == 3
    assert saved["bad_steps"] == 0
    assert saved["scaler"]["scale"] == 2.0**10


def test_a_batch_norm_with_one_value_says_what_to_do(small):
    one_cell = ["training.batch_size=1", "transform.size=[32, 32]", "head.type=aspp"]
    with pytest.raises(UsageError, match="BatchNorm got a single value.*training.freeze_norm"):
        train(load_config(small, one_cell))
