"""Resuming: exact after stops, kills and damage, and refused where the config no longer fits."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter

import pytest

from seghiero_core import checkpoint as checkpoint_module
from seghiero_core.atomic import file_sha256
from seghiero_core.checkpoint import newest_intact_checkpoint, read_checkpoint
from seghiero_core.config.loading import load_config
from seghiero_core.errors import CheckpointError, ConfigError
from seghiero_core.training.dry_run import dry_run
from seghiero_core.training.interrupts import Interrupted
from seghiero_core.training.loop import train
from support.processes import ENVIRONMENT, SUPPORT
from support.runs import StopAt, assert_same, records, weights
from support.tiny import TINY


def crash(cfg, kills, seed):
    words = [sys.executable, SUPPORT / "crash.py", cfg, str(kills), str(seed)]
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_killed_run_is_readable_and_ends_bit_for_bit_like_an_uninterrupted_one(small):
    report = crash(small, kills=3, seed=1)
    assert report["kills"] == 3
    assert report["runs"] >= 1


@pytest.mark.slow
def test_fifty_kills(small):
    small.write_text(small.read_text().replace("epochs: 2", "epochs: 6, ema: 0.9"))
    report = crash(small, kills=50, seed=2)
    assert report["kills"] == 50
    assert report["while_saving"] >= 1
    assert report["while_validating"] >= 1
    assert len(set(report["steps_at_kills"])) > 3


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["training.ema=0.9", "training.gradient_accumulation=2", "head.type=aspp"],
        [*TINY, "training.optimizer=sgd", "training.schedule=cosine", "training.lr=0.01"],
        [*TINY, "training.optimizer=sgd", "training.schedule=constant", "training.ema=0.9"],
    ],
)
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
    assert records(whole.run_dir) == records(parts.run_dir)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(small):
    config = load_config(small)
    train(config)
    last = (config.run_dir / "last").resolve()
    data = bytearray((last / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (last / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="model.safetensors has changed"):
        read_checkpoint(last)
    checkpoint, damaged = newest_intact_checkpoint(config.run_dir)
    assert checkpoint.folder != last
    assert len(damaged) == 1
    events = []
    train(config, resume=True, notify=events.append)
    assert any("has changed" in event["text"] for event in events if event["event"] == "warning")
    assert read_checkpoint(config.run_dir / "last").folder == last  # written again, whole


def test_leftovers_of_a_killed_save_go_and_last_is_put_right(small):
    config = load_config(small)
    train(config)
    checkpoints = config.run_dir / "checkpoints"
    (checkpoints / ".step-00000099.1").mkdir()
    (checkpoints / ".step-00000099.1/model.safetensors").write_bytes(b"half")
    (config.run_dir / ".last.1").symlink_to("checkpoints/step-00000099")
    (config.run_dir / "last").unlink()
    (config.run_dir / "last").symlink_to("checkpoints/step-00000002")  # killed between the folder and its link
    train(config, resume=True)
    assert not list(config.run_dir.rglob(".*"))
    assert (config.run_dir / "last").resolve().name == "step-00000004"


@pytest.mark.parametrize("name", ["model.safetensors", "training.json", "manifest.json"])
def test_a_half_written_file_is_recognized(small, name):
    config = load_config(small)
    train(config)
    last = (config.run_dir / "last").resolve()
    (last / name).write_bytes((last / name).read_bytes()[:-20])
    _, damaged = newest_intact_checkpoint(config.run_dir)
    assert list(damaged) == [last]
    events = []
    train(config, resume=True, notify=events.append)
    warnings = [event["text"] for event in events if event["event"] == "warning"]
    assert len(warnings) == 1
    assert str(last / name) in warnings[0] or f"{last}: {name} has changed" in warnings[0]
    assert read_checkpoint(config.run_dir / "last").folder == last
    assert read_checkpoint(config.run_dir / "best")
    assert not list((config.run_dir / "checkpoints").glob("damaged-*"))


def test_a_run_with_only_damaged_checkpoints_does_not_start_over_by_itself(small):
    config = load_config(small, ["training.epochs=1"])
    train(config)
    (config.run_dir / "last/training.json").unlink()
    with pytest.raises(CheckpointError, match="all of its checkpoints are damaged.*--force"):
        train(config, resume=True)


def test_resuming_with_other_classes_or_another_model_lists_the_differences(small):
    train(load_config(small, ["training.epochs=1"]))
    with pytest.raises(ConfigError) as caught:
        train(load_config(small, ["head.proj_dim=32", "classes.labels=[grass, sky, disc, ring]"]), resume=True)
    assert "head.proj_dim: 16 in the run, 32 now" in str(caught.value)
    assert "classes.labels: {0: 'sky', 1: 'grass'" in str(caught.value)


def test_resuming_with_another_optimizer_or_schedule(small):
    train(load_config(small, [*TINY, "training.epochs=1"]))
    sgd = load_config(small, [*TINY, "training.optimizer=sgd"])
    for command in (train, dry_run):
        with pytest.raises(ConfigError, match="can't be resumed with training.optimizer: sgd.* that of adamw"):
            command(sgd, resume=True)
    events = []
    options = ["training.schedule=cosine", "training.early_stopping=3", "training.val_batch_size=1"]
    train(load_config(small, [*TINY, *options]), resume=True, notify=events.append)
    (warning,) = [event["text"] for event in events if event["event"] == "warning"]
    for words in ("schedule: 'poly' in the run, 'cosine' now", "early_stopping: None in the run, 3 now"):
        assert words in warning


def test_resume_without_a_checkpoint_starts_from_scratch_and_says_so(small):
    events = []
    train(load_config(small, ["training.epochs=1"]), resume=True, notify=events.append)
    assert any("starts from scratch" in event["text"] for event in events if event["event"] == "warning")


def test_a_run_resumes_only_with_the_same_images_per_step(small):
    config = load_config(small)
    with pytest.raises(Interrupted):
        train(config, notify=StopAt(2))
    with pytest.raises(ConfigError, match="2 images per step, this config has 1"):
        train(load_config(small, ["training.batch_size=1"]), resume=True)
    record = train(load_config(small, ["training.batch_size=1", "training.gradient_accumulation=2"]), resume=True)
    steps = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps if row["event"] == "step"] == list(range(1, record["step"] + 1))
    assert record["event"] == "validation"
    assert train(load_config(small), resume=True) == json.loads(json.dumps(record))  # it is done: the same again


def test_resuming_with_other_values_says_which(small, run):
    assert run("train", small)[0] == 0
    code, _, err = run("train", small, "--resume", "--set", "training.epochs=3", "--set", "transform.flip=0")
    assert code == 0 and "is resumed with other values" in err
    assert "training.epochs: 2 in the run, 3 now" in err and "transform.flip: 0.5 in the run, 0.0 now" in err
    code, _, err = run("train", small, "--resume", "--set", "training.epochs=3", "--set", "transform.flip=0")
    assert code == 0 and "other values" not in err


@pytest.fixture
def hashed(monkeypatch):
    """How often each file was hashed, by its path."""
    counts = Counter()

    def count(path):
        counts[path] += 1
        return file_sha256(path)

    monkeypatch.setattr(checkpoint_module, "file_sha256", count)
    return counts


@pytest.mark.parametrize("command", [train, dry_run])
def test_a_command_verifies_the_hashes_of_a_checkpoint_once(small, hashed, command):
    train(load_config(small, ["training.epochs=1"]))
    config = load_config(small, ["training.epochs=2", "training.batch_size=auto"])
    folder = (config.run_dir / "last").resolve()
    manifest = json.loads((folder / "manifest.json").read_text())
    hashed.clear()
    command(config, resume=True)
    assert {path.name: count for path, count in hashed.items() if path.parent == folder} == dict.fromkeys(
        manifest["sha256"], 1
    )


def test_an_old_checkpoint_has_counted_its_validation(small):
    """Older versions saved after the validation, without the key validated_step."""
    config = load_config(small, [*TINY, "training.epochs=1"])
    best = train(config)["metrics"]["mean_miou"]
    folder = (config.run_dir / "last").resolve()
    saved = json.loads((folder / "training.json").read_text())
    for name in ("validated_step", "without_improvement", "first_loss", "diverged"):
        del saved[name]
    (folder / "training.json").write_text(json.dumps(saved | {"epoch": 1, "best": best, "best_step": 2}))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"]["training.json"] = file_sha256(folder / "training.json")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    longer = load_config(small, [*TINY, "training.epochs=2", "training.early_stopping=1"])
    assert train(longer, resume=True)["step"] == 4


def test_another_monitor_is_compared_with_the_best_checkpoint_by_its_own_measure(small):
    config = load_config(small, [*TINY, "training.epochs=2", "training.lr=1e-9"])
    train(config)
    leaf = [read_checkpoint(config.run_dir / name).metrics["levels"][0]["miou"] for name in ("best", "last")]
    longer = load_config(small, [*TINY, "training.epochs=3", "training.lr=1e-9", "training.monitor=leaf"])
    train(longer, resume=True)
    saved = read_checkpoint(config.run_dir / "last").training_state()[1]
    assert saved["best"] == max(leaf)
