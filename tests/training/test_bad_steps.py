"""Bad steps are skipped without a trace, counted, and stop the run when there are too many."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from seghiero_core.config.loading import load_config
from seghiero_core.errors import DeviceError
from seghiero_core.losses.combine import HierarchicalLoss
from seghiero_core.training.bad_steps import MicroBatch, is_bad_step
from seghiero_core.training.loop import train
from seghiero_core.training.run import prepare


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
    assert warnings == ["step 1 was skipped: loss term marginal_cross_entropy is not finite (1 of 10)."]
    records = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [record.get("loss") is None for record in records] == [False, True, False, False, True]
    assert all(tensor.isfinite().all() for tensor in load_file(config.run_dir / "last/model.safetensors").values())
    assert not (config.run_dir / "bad_batch.json").exists()


def test_a_bad_step_leaves_no_trace_in_the_buffers(small, monkeypatch):
    from seghiero_core.training import loop as module

    batches = module.batches

    def one_infinite(loader):
        for number, batch in enumerate(batches(loader)):
            if number == 1:
                batch["image"] = batch["image"].float()
                batch["image"][0, 0, 0, 0] = math.inf
            yield batch

    monkeypatch.setattr(module, "batches", one_infinite)
    config = load_config(small, ["training.batch_size=1", "training.epochs=1"])
    train(config)
    tensors = load_file(config.run_dir / "last/model.safetensors")
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert {int(value) for name, value in tensors.items() if name.endswith("num_batches_tracked")} == {3}


def test_too_many_bad_steps_stop_the_run_and_name_the_batch(small, poisoned):
    poisoned({4, 6, 7})
    config = load_config(small, ["training.batch_size=1", "training.max_bad_steps=3", "training.epochs=3"])
    with pytest.raises(DeviceError, match="cross_entropy is not finite at step 7.*first, at step 4") as caught:
        train(config)
    assert caught.value.exit_code == 4
    document = json.loads((config.run_dir / "bad_batch.json").read_text())
    assert document["first"] == {"step": 4, "what": "loss term marginal_cross_entropy is not finite"}
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
