"""How many validation images are computed at once: `training.val_batch_size`."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from seghiero_core.config.loading import load_config
from seghiero_core.errors import UsageError
from seghiero_core.model.measuring import MemoryLimit
from seghiero_core.training import batch_size, val_batch_size
from seghiero_core.training.prepare import prepare
from support.tiny import TINY


def find(small, size, samples=64, **options):
    """The limit of `auto` for images of a size, and the warnings."""
    run = prepare(load_config(small, TINY))
    events = []
    limit = val_batch_size.find_val_limit(
        run.config, run.model, run.loss, run.accelerator, sizes=[size], samples=samples, notify=events.append, **options
    )
    return limit, [event["text"] for event in events]


@pytest.mark.parametrize(
    ("sizes", "samples", "expected"),
    [
        ([(64, 64)], 20, 20),
        ([(512, 512)], 500, 16),
        ([(1024, 2048)], 500, 2),
        ([(3000, 2000)], 500, 1),
        ([(64, 64), (32, 32)], 500, 1),
    ],
)
def test_a_batch_never_holds_dozens_of_large_images(sizes, samples, expected):
    assert val_batch_size._largest_useful_batch(sizes, samples) == expected


def test_a_gpu_gets_the_largest_batch_that_fits(small, monkeypatch):
    run = prepare(load_config(small, TINY))
    tried = []

    def fits(predict, device, to_come):
        predict()
        return len(tried) <= 3

    forward = run.model.forward

    def counted(images, **options):
        tried.append(tuple(images.shape))
        return forward(images, **options)

    monkeypatch.setattr(run.model, "forward", counted)
    monkeypatch.setattr(val_batch_size, "_fits_gpu", fits)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    accelerator = SimpleNamespace(
        device=SimpleNamespace(type="cuda"), num_processes=1, autocast=nullcontext, gather=lambda found: found
    )
    to = torch.Tensor.to
    monkeypatch.setattr(
        torch.Tensor, "to", lambda x, where, **kw: x if where is accelerator.device else to(x, where, **kw)
    )
    monkeypatch.setattr(torch, "tensor", lambda values, device: torch.as_tensor(values))
    limit = val_batch_size.find_val_limit(
        run.config, run.model, run.loss, accelerator, sizes=[(64, 96)], samples=99, notify=print
    )
    assert limit == MemoryLimit(4) and [shape[0] for shape in tried] == [1, 2, 4, 8]
    assert {shape[1:] for shape in tried} == {(3, 64, 96)}


def test_an_image_that_does_not_fit_is_computed_in_tiles_and_said_so(small, monkeypatch):
    monkeypatch.setattr(val_batch_size, "available_bytes", lambda: 2**27)
    limit, warnings = find(small, (3000, 2000))
    assert (limit.images, limit.tile) == (1, 1024)
    assert len(warnings) == 1
    assert "a validation image of 3000x2000 px (HxW) doesn't fit in the memory of cpu" in warnings[0]
    assert find(small, (256, 256))[0].tile is None


def test_measuring_changes_neither_weights_nor_random_numbers(small):
    run = prepare(load_config(small, [*TINY, "training.val_batch_size=3"]))
    expected, weights = torch.get_rng_state(), run.model.state_dict()
    assert run.val_limit == MemoryLimit(3)
    run = prepare(load_config(small, TINY))
    assert torch.equal(torch.get_rng_state(), expected) and run.val_limit == MemoryLimit(1)
    assert all(torch.equal(weights[name], value) for name, value in run.model.state_dict().items())
    assert run.model.training


def test_live_bytes_are_those_of_the_tensors_alive_at_once():
    layer = nn.Linear(256, 256, bias=False)
    x = torch.randn(64, 256)
    with torch.inference_mode(), val_batch_size._LiveBytes() as live:
        for _ in range(3):
            x = layer(x)
    assert live.peak == 2 * x.nbytes  # the input, once it is a layer's output, and the output


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "all", "true"])
def test_it_takes_a_number_or_auto(small, value):
    with pytest.raises(UsageError, match="training.val_batch_size: expected 'auto' or a whole number from 1"):
        load_config(small, [f"training.val_batch_size={value}"])


def test_a_process_without_room_decides_for_all(small, monkeypatch):
    run = prepare(load_config(small, TINY))
    monkeypatch.setattr(run.accelerator, "gather", lambda found: torch.cat([found, torch.tensor([0])]))
    limit = val_batch_size.find_val_limit(
        run.config, run.model, run.loss, run.accelerator, sizes=[(64, 64)], samples=64, notify=lambda event: None
    )
    assert limit.tile == 1024


def test_the_memory_of_the_optimizer_is_known(small):
    model = prepare(load_config(small, TINY)).model
    parts = [batch_size.static_mib(model, ema=False, optimizer=name) for name in ("adamw", "sgd")]
    assert parts[0]["optimizer"] == 2 * parts[1]["optimizer"] == 2 * parts[0]["gradients"]


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError()])
def test_memory_that_runs_out_in_the_trial_on_the_cpu_means_tiles(small, monkeypatch, error):
    def fail(*_, **__):
        raise error

    run = prepare(load_config(small, TINY))
    monkeypatch.setattr(val_batch_size, "count_images", fail)
    events = []
    limit = val_batch_size.find_val_limit(
        run.config, run.model, run.loss, run.accelerator, sizes=[(64, 64)], samples=2, notify=events.append
    )
    assert limit.tile == 1024 and len(events) == 1
