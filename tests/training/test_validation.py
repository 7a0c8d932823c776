"""The validation in a run: saved before, repeated after a kill, in tiles where memory is short, and what it decides."""

from __future__ import annotations

import contextlib
import json

import pytest
import torch
from PIL import Image

from seghiero_core import checkpoint as checkpoint_module
from seghiero_core.checkpoint import read_checkpoint
from seghiero_core.config.loading import load_config
from seghiero_core.errors import DeviceError
from seghiero_core.model import measuring
from seghiero_core.training import validation
from seghiero_core.training.dry_run import dry_run
from seghiero_core.training.loop import train
from support.runs import assert_same, records, weights
from support.tiny import TINY


class Killed(BaseException):
    """What no part of a run catches, as if the process ended there."""


def kill_at(name):
    def notify(event):
        if event["event"] == name:
            raise Killed

    return notify


@pytest.fixture
def kill(monkeypatch):
    """`kill(where)`: a `notify` for a run that is to end at that place of its first validation."""

    def arm(where):
        if where in ("validating", "validation"):
            return kill_at(where)
        replace, link = checkpoint_module._replace_text, checkpoint_module.replace_link

        def replace_text(path, text):
            if path.name == where:
                raise Killed
            replace(path, text)

        def replace_link(path, folder):
            if path.name == where:
                raise Killed
            link(path, folder)

        monkeypatch.setattr(checkpoint_module, "_replace_text", replace_text)
        monkeypatch.setattr(checkpoint_module, "replace_link", replace_link)
        return lambda event: None

    return arm


@pytest.mark.parametrize("where", ["validating", "validation", "metrics.json", "manifest.json", "best"])
def test_a_kill_in_the_validation_loses_nothing(small, kill, where, monkeypatch):
    options = [*TINY, "training.ema=0.5"]
    whole = load_config(small, [*options, "output.name=whole"])
    train(whole)
    config = load_config(small, options)
    with monkeypatch.context(), pytest.raises(Killed):
        train(config, notify=kill(where))
    monkeypatch.undo()
    last = read_checkpoint(config.run_dir / "last")
    assert last.step == 2 and bool(last.metrics) == (where == "best")
    events = []
    train(config, resume=True, notify=events.append)
    steps = [event["step"] for event in events if event["event"] in ("step", "validation")]
    assert steps == ([3, 4, 4] if where == "best" else [2, 3, 4, 4])
    assert records(config.run_dir) == records(whole.run_dir)
    assert_same(weights(whole.run_dir), weights(config.run_dir))
    for link in ("best", "last"):
        names = {(run / link).resolve().name for run in (whole.run_dir, config.run_dir)}
        assert len(names) == 1
        found = [json.loads((run / link / "metrics.json").read_text()) for run in (whole.run_dir, config.run_dir)]
        assert found[0] == found[1]
    assert not list(config.run_dir.rglob(".*"))


def test_metrics_are_added_without_writing_the_weights_again(small):
    config = load_config(small, [*TINY, "training.epochs=1"])
    seen = {}

    def look(event):
        if event["event"] in ("validating", "end"):
            file = config.run_dir / "last/model.safetensors"
            seen[event["event"]] = (file.stat().st_ino, file.stat().st_mtime_ns, read_checkpoint(file.parent).metrics)

    train(config, notify=look)
    assert seen["validating"][:2] == seen["end"][:2]
    assert seen["validating"][2] == {} and seen["end"][2]["mean_miou"] is not None


def test_early_stopping_ends_the_run_and_a_resume_does_not_go_on(small, run, monkeypatch):
    values = iter([0.3, 0.5, 0.4, 0.5, 0.6, 0.7])

    def summary(metrics):
        return measured(metrics) | {"mean_miou": next(values)}

    measured = validation.summary
    monkeypatch.setattr(validation, "summary", summary)
    options = [*TINY, "training.epochs=6", "training.early_stopping=2"]
    words = [word for option in options for word in ("--set", option)]
    code, _, err = run("train", small, *words)
    assert code == 0 and "Stopped early after epoch 4: mean_miou was not better in the last 2 validations" in err
    folder = small.parent / "runs/small"
    assert [row["epoch"] for row in records(folder) if row["event"] == "validation"] == [1, 2, 3, 4]
    assert (folder / "best").resolve().name == "step-00000004"
    before = (folder / "metrics.jsonl").read_bytes()
    code, _, err = run("train", small, *words, "--resume")
    assert code == 0 and "Stopped early after epoch 4" in err
    assert (folder / "metrics.jsonl").read_bytes() == before
    record = train(load_config(small, [*options, "training.early_stopping=3"]), resume=True)
    assert record["epoch"] == 6 and record["best"]


def test_a_run_that_was_killed_stops_early_where_the_whole_one_does(small, monkeypatch):
    def summary(metrics):
        document = measured(metrics)
        return document | {"mean_miou": 0.5 - 0.01 * len(document["levels"])}  # never better than the first time

    measured = validation.summary
    monkeypatch.setattr(validation, "summary", summary)
    options = [*TINY, "training.epochs=9", "training.early_stopping=2"]
    config = load_config(small, options)
    for _ in range(3):  # killed in every validation, before and after its record
        with pytest.raises(Killed):
            train(config, resume=True, notify=kill_at("validation"))
        count = len(records(config.run_dir))
        with pytest.raises(Killed):
            train(config, resume=True, notify=kill_at("validating"))
        assert len(records(config.run_dir)) == count - 1
        train_one_epoch(config)
    events = []
    train(config, resume=True, notify=events.append)
    assert [event["event"] for event in events if event["event"] in ("step", "validation", "end")] == ["end"]
    assert events[-1]["epoch"] == 3


def train_one_epoch(config):
    """Resume at a pending validation, and end after it."""

    def notify(event):
        if event["event"] == "step":
            raise Killed

    with contextlib.suppress(Killed):
        train(config, resume=True, notify=notify)


@pytest.mark.parametrize("monitor", ["mean_miou", "leaf"])
def test_nothing_labeled_in_the_validation_set(small, run, monitor):
    for mask in (small.parent / "val/masks").iterdir():
        Image.new("L", (64, 48), 255).save(mask)
    options = [*TINY, f"training.monitor={monitor}", "training.early_stopping=1"]
    code, _, err = run("train", small, *[word for option in options for word in ("--set", option)])
    assert code == 0, err
    assert "-100.0" not in err and "Best" not in err and "(best)" not in err
    assert err.count(f"so {monitor} can't be measured: `best` is the last validated checkpoint") == 1
    folder = small.parent / "runs/small"
    assert (folder / "best").resolve() == (folder / "last").resolve()
    checkpoint = read_checkpoint(folder / "best")
    assert checkpoint.step == 4 and checkpoint.training_state()[1]["best"] is None
    before = (folder / "metrics.jsonl").read_text()
    assert '"best": true' not in before


def measures(run):
    """The numbers of all validations of a run, in one list: kernels for other batch sizes round differently."""
    return pytest.approx(list(numbers([row["metrics"] for row in records(run) if row["event"] == "validation"])))


def numbers(value):
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from numbers(item)
    elif isinstance(value, int | float):
        yield value


def out_of_memory_above(monkeypatch, pixels, images):
    """Let the network run out of memory with more pixels, or with more images at once."""
    count_images = measuring.count_images
    seen = []

    def limited(forward, batch, *arguments, **options):
        def small_forward(part):
            seen.append(tuple(part.shape))
            if part.shape[-2] * part.shape[-1] > pixels or len(part) > images:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return forward(part)

        return count_images(small_forward, batch, *arguments, **options)

    import seghiero_core.evaluation.evaluate as module

    monkeypatch.setattr(module, "count_images", limited)
    return seen


def test_memory_that_runs_out_in_the_validation_makes_smaller_batches_and_then_tiles(small, monkeypatch):
    monkeypatch.setattr(measuring, "DEFAULT_TILE", 64)
    monkeypatch.setattr(measuring, "DEFAULT_OVERLAP", 32)
    monkeypatch.setattr(measuring, "_SMALLEST_TILE", 32)
    options = [*TINY, "training.epochs=2", "training.val_batch_size=2"]
    whole = load_config(small, [*options, "output.name=whole"])
    train(whole)
    seen = out_of_memory_above(monkeypatch, 48 * 64, 1)
    halved = load_config(small, [*options, "output.name=halved"])
    events = []
    train(halved, notify=events.append)
    assert [shape[0] for shape in seen] == [2, 1, 1, 1, 1]  # tried once
    assert measures(halved.run_dir).expected == measures(whole.run_dir)
    assert not [event for event in events if event["event"] == "warning"]

    monkeypatch.undo()
    monkeypatch.setattr(measuring, "DEFAULT_TILE", 64)
    monkeypatch.setattr(measuring, "DEFAULT_OVERLAP", 16)
    monkeypatch.setattr(measuring, "_SMALLEST_TILE", 32)
    out_of_memory_above(monkeypatch, 32 * 64, 1)
    tiled = load_config(small, [*options, "output.name=tiled"])
    events = []
    record = train(tiled, notify=events.append)
    (warning,) = [event["text"] for event in events if event["event"] == "warning"]
    assert "didn't fit in the memory of cpu: validation goes on in tiles of 32 px" in warning
    assert record["metrics"]["pixels"] == records(whole.run_dir)[-1]["metrics"]["pixels"]
    assert_same(weights(whole.run_dir), weights(tiled.run_dir))
    with Image.open(tiled.run_dir / "validation.png") as picture:
        assert picture.size[0] > 64


def test_memory_that_is_too_small_for_a_tile_ends_the_run_with_advice(small, monkeypatch):
    from seghiero_core.errors import DeviceError

    out_of_memory_above(monkeypatch, 0, 0)
    with pytest.raises(DeviceError, match="ran out of memory"):
        train(load_config(small, [*TINY, "training.epochs=1"]))
    assert read_checkpoint(small.parent / "runs/small/last").step == 2


def test_measures_do_not_depend_on_the_batch_size(small):
    found = []
    for size in (1, 2, "auto"):
        config = load_config(small, [*TINY, f"training.val_batch_size={size}", f"output.name=size{size}"])
        train(config)
        found.append(measures(config.run_dir))
    assert found[0].expected == found[1] and found[0].expected == found[2]


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError()])
@pytest.mark.parametrize("command", [train, dry_run])
def test_out_of_memory_in_a_validation_blames_no_training_batch(small, monkeypatch, error, command):
    def fail(*_, **__):
        raise error

    config = load_config(small, [*TINY, "training.epochs=1"])
    monkeypatch.setattr("seghiero_core.evaluation.evaluate.count_images", fail)
    with pytest.raises(DeviceError, match="cpu ran out of memory in the validation") as caught:
        command(config)
    assert "batch_size" not in str(caught.value)
