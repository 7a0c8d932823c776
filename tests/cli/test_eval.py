"""`seghiero eval`: which checkpoint it takes."""

from __future__ import annotations

import pytest


def test_unknown_run_is_a_usage_error(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run("eval", "nothing-here")
    assert (code, "nothing-here: no such run" in err) == (2, True)
    code, _, err = run("eval")
    assert (code, "no run in" in err) == (2, True)


def test_a_checkpoint_is_named_by_its_weights_and_no_other_file(tiny_run):
    from seghiero_core.checkpoint import find_checkpoint
    from seghiero_core.errors import UsageError

    best = tiny_run / "best"
    assert find_checkpoint(best / "model.safetensors") == best
    with pytest.raises(UsageError, match="training.safetensors is not a checkpoint"):
        find_checkpoint(best / "training.safetensors")
