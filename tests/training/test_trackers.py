"""Trackers get what metrics.jsonl gets, and a missing one is named."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from seghiero_core.config.loading import load_config
from seghiero_core.errors import UsageError
from seghiero_core.training import trackers
from seghiero_core.training.loop import train


def test_a_tracker_that_is_missing_names_its_extra(small, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"wandb isn't installed; install it with `pip install 'seghiero\[wandb\]'`"):
        train(load_config(small, ["training.trackers=[wandb]"]))
    with pytest.raises(UsageError, match="training.trackers"):
        load_config(small, ["training.trackers=[abacus]"])


def test_the_numbers_of_each_source_are_tracked():
    levels = [{"name": "leaf", "miou": 0.5}, {"name": "level1", "miou": None}]
    names = ("mean_miou", "consistency", "full_path_accuracy", "mean_tree_distance")
    metrics = {"levels": levels} | dict.fromkeys(names, 0.25)
    logged = []
    accelerator = SimpleNamespace(trackers=[1], log=lambda values, step: logged.append((values, step)))
    record = {"event": "validation", "step": 3, "metrics": metrics, "sources": {"city": metrics}}
    trackers.track(accelerator, record)
    ((values, step),) = logged
    expected = {"leaf_miou": 0.5} | dict.fromkeys(names, 0.25)
    assert step == 3
    assert values == {f"{prefix}/{name}": v for prefix in ("val", "val/city") for name, v in expected.items()}


@pytest.mark.filterwarnings("default")  # TensorBoard's own imports warn
def test_tensorboard_gets_what_metrics_jsonl_has(small):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = load_config(small, ["training.trackers=[tensorboard]"])
    train(config)
    records = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if record["event"] == "step"]
    events = EventAccumulator(str(config.run_dir / "seghiero")).Reload()
    found = [(scalar.step, scalar.value) for scalar in events.Scalars("train/loss")]
    assert found == [(record["step"], pytest.approx(record["loss"])) for record in steps]
    last = [record for record in records if record["event"] == "validation"][-1]
    assert events.Scalars("val/mean_miou")[-1].value == pytest.approx(last["metrics"]["mean_miou"])
