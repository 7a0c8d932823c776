"""Which checkpoint a path refers to: a run, a folder of runs, a project, a config, a file of a checkpoint."""

from __future__ import annotations

import os

import pytest

from seghiero_core.errors import UsageError
from seghiero_core.runs import SeveralRuns, find_checkpoint, run_of
from support.tiny import TINY, save_untrained


@pytest.fixture
def two_runs(small):
    """The runs `old` and `small` of the config `small`, the second one newer."""
    for age, name in ((100, "old"), (0, "small")):
        run = save_untrained(small, [*TINY, f"output.name={name}"]).run_dir
        os.utime(run / "last", (1e9 - age, 1e9 - age))
    return small.parent / "runs"


def test_an_unnamed_run_is_the_newest(two_runs, tmp_path):
    assert find_checkpoint(None, two_runs) == two_runs / "small" / "best"
    with pytest.raises(UsageError, match="no run in"):
        find_checkpoint(None, tmp_path / "empty")


def test_a_misspelt_run_names_what_is_there(two_runs, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=rf"smal: no such run folder or checkpoint. Did you mean '{two_runs}/small'"):
        find_checkpoint(two_runs / "smal")
    monkeypatch.chdir(two_runs.parent)
    with pytest.raises(UsageError, match=r"smll: no such run folder or checkpoint. Did you mean 'runs/small'"):
        find_checkpoint("smll")
    with pytest.raises(UsageError, match=r"p: no such run folder or checkpoint. Runs: runs/small, runs/old\."):
        find_checkpoint("p")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"The folder nowhere doesn't exist"):
        find_checkpoint("nowhere/runs/p")


def test_a_folder_with_one_run_means_that_run(tiny_run, starter_folder):
    lone = starter_folder.parent / "lone" / "runs" / "tiny"
    lone.parent.mkdir(parents=True, exist_ok=True)
    if not lone.exists():
        lone.symlink_to(tiny_run)
    for path in (lone.parent, lone.parents[1]):  # runs/, and the project that holds it
        assert find_checkpoint(path) == lone / "best"


def test_a_folder_with_several_runs_lists_them(two_runs):
    for path in (two_runs, two_runs.parent):
        with pytest.raises(SeveralRuns, match="holds 2 runs; name one of them") as caught:
            find_checkpoint(path)
        assert caught.value.runs == (two_runs / "small", two_runs / "old")


def test_a_config_means_its_run(small, two_runs):
    assert find_checkpoint(small) == two_runs / "small" / "best"
    assert find_checkpoint(two_runs / "old" / "best" / "config.yaml") == two_runs / "old" / "best"
    other = small.with_name("other.yaml")
    other.write_text(small.read_text().replace("{name: small}", "{name: unborn}"))
    with pytest.raises(UsageError, match="runs/unborn has no checkpoint") as caught:
        find_checkpoint(other)
    assert f"seghiero train {other}" in str(caught.value)


def test_a_checkpoint_is_named_by_its_weights_and_no_other_file(tiny_run):
    best = tiny_run / "best"
    assert find_checkpoint(best / "model.safetensors") == best
    with pytest.raises(UsageError, match=r"training.safetensors is not a checkpoint"):
        find_checkpoint(best / "training.safetensors")
    with pytest.raises(UsageError, match="contains no checkpoint"):
        find_checkpoint(tiny_run.parents[1] / "data")


def test_the_run_of_a_checkpoint(tiny_run, tmp_path):
    assert run_of(tiny_run / "best") == run_of((tiny_run / "last").resolve()) == tiny_run.resolve()
    copy = tmp_path / "somewhere"
    copy.mkdir()
    assert run_of(copy) is None
