"""A dry run measures and writes nothing."""

from __future__ import annotations

import json

import pytest

from seghiero_core.config.loading import load_config
from seghiero_core.training.dry_run import dry_run
from seghiero_core.training.loop import train


def test_a_dry_run_measures_and_writes_nothing(small, run):
    before = sorted(small.parent.rglob("*"))
    code, out, err = run("train", small, "--dry-run", "--json")
    assert code == 0, err
    facts = json.loads(out)
    assert facts["batch_size"] == 2
    assert facts["steps_per_epoch"] == 2
    assert 0 < facts["seconds_per_step"] * 4 < facts["seconds"]
    assert facts["seconds_per_epoch"] == pytest.approx(facts["seconds"] / 2)
    assert facts["memory_mib"]["peak"] > facts["memory_mib"]["weights"] > 40
    code, out, _ = run("train", small, "--dry-run")
    assert code == 0
    assert "per epoch of 2 steps" in out
    assert sorted(small.parent.rglob("*")) == before


def test_a_dry_run_leaves_a_run_that_exists_alone(small):
    train(load_config(small, ["training.epochs=1"]))
    before = {path: path.stat().st_mtime_ns for path in small.parent.rglob("*")}
    dry_run(load_config(small), force=True)
    assert {path: path.stat().st_mtime_ns for path in small.parent.rglob("*")} == before


def test_dry_run_beside_a_run_that_is_there(small, run):
    assert run("train", small)[0] == 0
    code, out, err = run("train", small, "--dry-run")
    assert code == 0 and "time: " in out and "train would stop here" in err and "holds a run" in err
    assert "would stop" not in run("train", small, "--dry-run", "--resume")[2]


def test_a_dry_run_of_a_resume_takes_the_batch_size_of_the_run(small):
    train(load_config(small, ["training.epochs=1"]))
    auto = load_config(small, ["training.batch_size=auto"])
    assert dry_run(auto, resume=True)["batch_size"] == 2
    assert dry_run(auto, force=True)["batch_size"] == 4
