"""Training runs of seconds: what they leave behind, and that they learn."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from seghiero_core.checkpoint import read_checkpoint
from seghiero_core.config.loading import load_config
from seghiero_core.training.interrupts import Interrupted
from seghiero_core.training.loop import train
from support.runs import StopAt
from support.tiny import TINY


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


def test_batches_of_ignored_pixels_alone_change_nothing_but_are_no_error(small):
    for mask in (small.parent / "train/masks").iterdir():
        Image.new("L", (64, 48), 255).save(mask)
    record = train(load_config(small, ["training.epochs=1"]))
    assert record["metrics"]["pixels"] > 0


def test_one_image_in_a_batch_trains_with_the_default_head(small):
    train(load_config(small, ["training.batch_size=1", "head={type: aspp}", "training.epochs=1"]))


def test_a_run_one_folder_down_is_named(small, run, monkeypatch):
    assert run("train", small)[0] == 0
    monkeypatch.chdir(small.parent.parent)
    code, _, err = run("eval")
    assert code == 2 and "no run in" in err
    named = Path(re.search(r"There is one in (.*)\.$", err.strip())[1])
    assert named.resolve() == small.parent / "runs" / "small"


def test_a_term_that_is_taken_for_a_preset(small, run):
    code, _, err = run("train", small, "--set", "loss={preset: focal}")
    assert code == 2 and "Write `loss: {terms: {focal: 1}}`." in err


@pytest.mark.slow
def test_a_compiled_run_learns_the_same(small):
    plain = train(load_config(small, ["training.epochs=1", "output.name=plain"]))
    compiled = train(load_config(small, ["training.epochs=1", "training.compile=true"]))
    assert compiled["metrics"]["mean_miou"] == pytest.approx(plain["metrics"]["mean_miou"], abs=0.05)
    a, b = (load_file(small.parent / f"runs/{name}/last/model.safetensors") for name in ("plain", "small"))
    assert a.keys() == b.keys()
    for name in a:
        if "running_" not in name:  # those of the last stage come from a few values, and magnify rounding
            torch.testing.assert_close(a[name], b[name], atol=5e-3, rtol=5e-2)


def warnings_of(config):
    events = []
    train(config, notify=events.append)
    return [event["text"] for event in events if event["event"] == "warning"]


def test_a_batch_larger_than_the_training_set_is_said_once(small):
    (text,) = warnings_of(load_config(small, [*TINY, "training.batch_size=16", "training.epochs=2"]))
    assert text.startswith(
        "training.batch_size 16 is more than the 4 training images of an epoch: each epoch is one step over them"
    )
    (text,) = warnings_of(
        load_config(small, [*TINY, "training.gradient_accumulation=3", "training.epochs=1", "output.name=b"])
    )
    assert text.startswith("training.batch_size 2 x gradient_accumulation 3 is more than the 4 training images")


def test_a_loss_that_explodes_is_said_once(small, monkeypatch):
    from seghiero_core.losses.combine import HierarchicalLoss

    call, losses = HierarchicalLoss.__call__, iter([2.5, 3.0, 1e8, 1e8, 1e8, 1e8, 1e8, 1e8])

    def exploding(self, *arguments, **options):
        total, terms = call(self, *arguments, **options)
        return total * 0 + next(losses), terms

    monkeypatch.setattr(HierarchicalLoss, "__call__", exploding)
    config = load_config(small, [*TINY, "training.lr=1000", "training.epochs=4"])
    with pytest.raises(Interrupted):
        train(config, notify=StopAt(1))
    events = []
    train(config, resume=True, notify=events.append)
    (text,) = [event["text"] for event in events if event["event"] == "warning"]
    assert text == (
        "training diverges: the loss is 1e+08 after step 3, and was 2.5 after the first. Lower training.lr (1000), or "
        "set training.clip_norm: 1.0."
    )


def test_a_set_smaller_than_a_step_gives_the_gradient_of_its_images(small):
    options = [*TINY, "training.epochs=1", "loss={terms: {leaf_cross_entropy: 1}}"]
    steps = []
    for name, batch_size, accumulation in (("one", 4, 1), ("short", 4, 3), ("shorter", 1000, 2)):
        words = [f"output.name={name}", f"training.batch_size={batch_size}"]
        config = load_config(small, [*options, *words, f"training.gradient_accumulation={accumulation}"])
        train(config)
        steps.append(json.loads((config.run_dir / "metrics.jsonl").read_text().splitlines()[0]))
    assert [step["grad_norm"] for step in steps] == pytest.approx([steps[0]["grad_norm"]] * 3, rel=1e-4)
    assert [step["images"] for step in steps] == [4, 4, 4]
