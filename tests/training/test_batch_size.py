"""batch_size: auto, and the advice where memory runs out."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from seghiero_core.config.loading import load_config
from seghiero_core.errors import DeviceError
from seghiero_core.losses.combine import HierarchicalLoss
from seghiero_core.training import batch_size
from seghiero_core.training.loop import train
from seghiero_core.training.prepare import prepare
from seghiero_core.training.run import Run


@pytest.mark.parametrize(("room", "expected"), [(0, 0), (1, 1), (5, 4), (8, 8), (100, 16)])
def test_the_largest_power_of_two_that_fits(room, expected):
    tried = []
    assert batch_size.largest_batch(lambda n: tried.append(n) or n <= room, most=30) == expected
    assert tried == [1, 2, 4, 8, 16][: len(tried)]


def test_batch_size_auto_changes_nothing_but_the_batch_size(small, monkeypatch):
    whole = load_config(small, ["training.batch_size=2", "output.name=whole", "training.epochs=1"])
    train(whole)
    config = load_config(small, ["training.batch_size=auto", "training.epochs=1"])
    monkeypatch.setattr(batch_size, "available_bytes", lambda: 2**40)
    assert prepare(config).config.training.batch_size == 4  # as many as there are images
    per_image = []
    kept = batch_size._kept_for_backward
    monkeypatch.setattr(batch_size, "_kept_for_backward", lambda step: per_image.append(kept(step) / 2) or kept(step))
    prepare(config)
    static = sum(batch_size.static_mib(prepare(config).model, ema=False, optimizer="adamw").values()) * 2**20
    room = static + 3 * per_image[0] * batch_size.CPU_OVERHEAD
    monkeypatch.setattr(batch_size, "available_bytes", lambda: int(room / batch_size.MEMORY_SHARE))
    train(config)
    assert load_config(config.run_dir / "config.yaml").training.batch_size == 2
    a, b = (load_file(run / "last/model.safetensors") for run in (whole.run_dir, config.run_dir))
    assert all(torch.equal(a[name], b[name]) for name in a)
    monkeypatch.setattr(batch_size, "available_bytes", lambda: 2**40)
    longer = load_config(small, ["training.batch_size=auto", "training.epochs=2"])
    train(longer, resume=True)  # keeps the size that it began with
    assert load_config(config.run_dir / "config.yaml").training.batch_size == 2
    monkeypatch.setattr(batch_size, "available_bytes", lambda: 2**20)
    with pytest.raises(DeviceError, match="ran out of memory with batches of 1: weights .*gradient_checkpointing"):
        prepare(config)


def test_what_a_step_keeps_is_counted():
    layer = nn.Linear(256, 256, bias=False)
    x = torch.randn(64, 256)
    kept = batch_size._kept_for_backward(lambda: layer(layer(x).relu()).sum().backward())
    weights, activation = layer.weight.nbytes, x.nbytes
    assert kept == weights + 2 * activation  # the weight once, the input, and relu's output for both that need it


def advice(run: Run) -> str:
    return str(batch_size.out_of_memory_error(run.config, run.model, run.accelerator.device))


def test_advice_for_too_little_memory_comes_in_order_and_leaves_out_what_is_done(small, monkeypatch):
    run = prepare(load_config(small, ["head.type=aspp", "training.precision=fp32"]))
    text = advice(run)
    order = ["gradient_checkpointing: true", "precision: bf16", "batch_size: 1 with", "lighter head", "transform.size"]
    places = [text.index(words) for words in order]
    assert places == sorted(places)
    weights = sum(t.nbytes for t in run.model.state_dict().values()) / 2**20
    assert f"weights {weights:.0f} MiB" in text
    run = prepare(load_config(small, ["backbone.gradient_checkpointing=true", "training.precision=bf16"]))
    assert "gradient_checkpointing" not in advice(run)
    assert "bf16" not in advice(run)

    def no_memory(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(HierarchicalLoss, "__call__", no_memory)
    with pytest.raises(DeviceError, match="ran out of memory with batches of 2: weights"):
        train(load_config(small))
