"""Training runs of seconds: what they leave behind, that they learn, resume exactly, and refuse what they must."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from seghiero_core.checkpoint import newest_whole_checkpoint, read_checkpoint
from seghiero_core.config.loading import load_config
from seghiero_core.config.schema import TrainingConfig
from seghiero_core.errors import CheckpointError, ConfigError, UsageError
from seghiero_core.training.interrupts import Interrupted
from seghiero_core.training.loop import train
from seghiero_core.training.optimizer import WeightAverage, lr_factor, make_optimizer


def weights(run):
    return load_file(run / "last/model.safetensors")


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_a_run_leaves_what_it_promises(small, run):
    code, out, err = run("train", small, "--json")
    assert code == 0, err
    folder = small.parent / "runs/small"
    document = json.loads(out)
    assert [level["name"] for level in document["levels"]] == ["leaf", "level1"]
    for name in ("best", "last"):
        assert (folder / name).is_symlink()
        assert read_checkpoint(folder / name).metrics["mean_miou"] == document["mean_miou"] or name == "best"
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [r["event"] for r in records] == ["step", "step", "validation"] * 2
    assert all(math.isfinite(r["loss"]) for r in records if r["event"] == "step")
    with Image.open(folder / "validation.png") as grid:
        assert grid.size[0] > 64
    assert load_config(folder / "config.yaml") == load_config(small)
    assert not list(folder.rglob(".*"))

    code, out, _ = run("eval", folder / "last", "--json")
    assert code == 0
    measured = json.loads(out)
    assert [level["classes"] for level in measured["levels"]] == [level["classes"] for level in document["levels"]]
    assert measured["mean_miou"] == document["mean_miou"]


def test_it_learns_these_pictures(small):
    config = load_config(
        small,
        ["training.epochs=40", "training.lr=5e-3", "training.validate_every=40", "transform.color_jitter=0"]
        + ["transform.scale=[1, 1]"],
    )
    record = train(config)
    assert record["metrics"]["levels"][0]["miou"] > 0.5
    assert record["metrics"]["consistency"] == 1.0


def test_a_run_that_exists_is_kept_unless_told_otherwise(small):
    config = load_config(small, ["training.epochs=1"])
    train(config)
    with pytest.raises(UsageError, match="--resume"):
        train(config)
    train(config, force=True)
    other = config.run_dir.parent / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("precious")
    with pytest.raises(UsageError, match="no run"):
        train(config.model_copy(update={"output": config.output.model_copy(update={"name": "other"})}), force=True)
    assert (other / "thesis.txt").exists()


class StopAt:
    """A `notify` that asks the run to stop, as Ctrl-C would, after a step."""

    def __init__(self, step):
        self.step = step

    def __call__(self, event):
        if event["event"] == "step" and event["step"] == self.step:
            import signal

            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("options", [[], ["training.ema=0.9", "training.gradient_accumulation=2", "head.type=aspp"]])
def test_a_resumed_run_ends_bit_for_bit_like_an_uninterrupted_one(small, options):
    options = [*options, "training.epochs=3"]
    whole = load_config(small, [*options, "output.name=whole"])
    parts = load_config(small, [*options, "output.name=parts"])
    steps = train(whole)["step"]
    for stop in range(1, steps):
        with pytest.raises(Interrupted) as caught:
            train(parts, resume=True, notify=StopAt(stop))
        assert caught.value.exit_code == 130
    train(parts, resume=True)
    assert_same(weights(whole.run_dir), weights(parts.run_dir))


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(small):
    config = load_config(small)
    train(config)
    last = (config.run_dir / "last").resolve()
    data = bytearray((last / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (last / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="model.safetensors has changed"):
        read_checkpoint(last)
    checkpoint, damaged = newest_whole_checkpoint(config.run_dir)
    assert checkpoint.folder != last
    assert len(damaged) == 1
    events = []
    train(config, resume=True, notify=events.append)
    assert any("has changed" in event["text"] for event in events if event["event"] == "warning")
    assert read_checkpoint(config.run_dir / "last").folder == last  # written again, whole


def test_resuming_with_other_classes_or_another_model_lists_the_differences(small):
    train(load_config(small, ["training.epochs=1"]))
    with pytest.raises(ConfigError) as caught:
        train(load_config(small, ["head.proj_dim=32", "classes.labels=[grass, sky, disc, ring]"]), resume=True)
    assert "head.proj_dim: 16 in the run, 32 now" in str(caught.value)
    assert "classes.labels: {0: 'sky', 1: 'grass'" in str(caught.value)


def test_resume_without_a_checkpoint_starts_afresh_and_says_so(small):
    events = []
    train(load_config(small, ["training.epochs=1"]), resume=True, notify=events.append)
    assert any("starts afresh" in event["text"] for event in events if event["event"] == "warning")


def test_batches_of_ignored_pixels_alone_change_nothing_but_are_no_error(small):
    for mask in (small.parent / "train/masks").iterdir():
        Image.new("L", (64, 48), 255).save(mask)
    record = train(load_config(small, ["training.epochs=1"]))
    assert record["metrics"]["pixels"] > 0


def test_one_image_in_a_batch_trains_with_the_default_head(small):
    train(load_config(small, ["training.batch_size=1", "head={type: aspp}", "training.epochs=1"]))


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


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_with_a_config_of_the_user_is_never_emptied(small, force):
    (small.parent / "config.yaml").write_text(small.read_text())
    config = load_config(small.parent / "config.yaml", ["output={dir: ., name: .}"])
    before = sorted(path for path in small.parent.rglob("*") if not path.name.endswith(".lock"))
    with pytest.raises(UsageError, match="no run"):
        train(config, force=force)
    assert sorted(path for path in small.parent.rglob("*") if not path.name.endswith(".lock")) == before


def test_force_removes_what_a_run_wrote_and_nothing_else(small):
    config = load_config(small, ["training.epochs=1"])
    train(config)
    (config.run_dir / "notes.txt").write_text("precious")
    (config.run_dir / "model.onnx").write_text("of the old weights")
    old = (config.run_dir / "last").resolve()
    train(load_config(small, ["training.epochs=1", "training.batch_size=4"]), force=True)
    assert (config.run_dir / "notes.txt").exists()
    assert not (config.run_dir / "model.onnx").exists() and not old.exists()


def test_a_run_goes_on_with_the_same_images_per_step_only(small):
    config = load_config(small)
    with pytest.raises(Interrupted):
        train(config, notify=StopAt(2))
    with pytest.raises(ConfigError, match="2 images per step, this config 1"):
        train(load_config(small, ["training.batch_size=1"]), resume=True)
    record = train(load_config(small, ["training.batch_size=1", "training.gradient_accumulation=2"]), resume=True)
    steps = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps if row["event"] == "step"] == list(range(1, record["step"] + 1))
    assert record["event"] == "validation"
    assert train(load_config(small), resume=True) == json.loads(json.dumps(record))  # it is done: the same again


def test_a_stop_in_the_validation_is_answered_there(small, monkeypatch):
    import signal

    from seghiero_core import evaluate
    from seghiero_core.metrics.metrics import Metrics

    seen = []

    class Interrupting(Metrics):
        def update(self, *arguments, **options):
            seen.append(signal.raise_signal(signal.SIGTERM))
            super().update(*arguments, **options)

    whole = load_config(small, ["output.name=whole", "training.batch_size=1"])
    train(whole)
    config = load_config(small, ["training.batch_size=1"])
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "Metrics", Interrupting)
        with pytest.raises(Interrupted, match="stopped in the validation after step 4"):
            train(config)
    assert len(seen) == 1  # of two validation batches
    assert train(config, resume=True)["event"] == "validation"
    assert_same(weights(whole.run_dir), weights(config.run_dir))


def test_resuming_with_other_values_says_which(small, run):
    assert run("train", small)[0] == 0
    code, _, err = run("train", small, "--resume", "--set", "training.epochs=3", "--set", "transform.flip=0")
    assert code == 0 and "goes on with other values than it had" in err
    assert "training.epochs: 2 in the run, 3 now" in err and "transform.flip: 0.5 in the run, 0.0 now" in err
    code, _, err = run("train", small, "--resume", "--set", "training.epochs=3", "--set", "transform.flip=0")
    assert code == 0 and "other values" not in err


def test_dry_run_beside_a_run_that_is_there(small, run):
    assert run("train", small)[0] == 0
    code, out, err = run("train", small, "--dry-run")
    assert code == 0 and "time: " in out and "train would stop here" in err and "holds a run" in err
    assert "would stop" not in run("train", small, "--dry-run", "--resume")[2]


def test_a_run_one_folder_down_is_named(small, run, monkeypatch):
    assert run("train", small)[0] == 0
    monkeypatch.chdir(small.parent.parent)
    code, _, err = run("eval")
    assert code == 2 and "no run under" in err
    named = Path(re.search(r"There is (.*)\.$", err.strip())[1])
    assert named.resolve() == small.parent / "runs" / "small"


def test_a_term_that_is_taken_for_a_preset(small, run):
    code, _, err = run("train", small, "--set", "loss={preset: focal}")
    assert code == 2 and "It is a term: terms: {focal: 1}." in err
