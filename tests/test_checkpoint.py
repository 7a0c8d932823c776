"""Checkpoint folders: what a path refers to, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from seghiero_core.checkpoint import DamagedCheckpoint, find_checkpoint, newest_intact_checkpoint, read_checkpoint
from seghiero_core.errors import UsageError
from support.tiny import TINY, save_untrained


@pytest.fixture
def saved(starter_folder: Path, tmp_path: Path) -> Path:
    """A run folder of the test's own."""
    return save_untrained(starter_folder / "cfg.yaml", [*TINY, f"output.dir={tmp_path / 'runs'}"]).run_dir


def test_the_newest_run_is_the_default(saved, tmp_path):
    older = tmp_path / "runs" / "older"
    older.mkdir()
    (older / "best").symlink_to(saved / "best")
    os.utime(saved / "last", (2e9, 2e9))
    assert find_checkpoint(None, tmp_path / "runs") in (saved / "best", older / "best")
    with pytest.raises(UsageError, match=f"no run in {tmp_path / 'empty'}; name a run folder"):
        find_checkpoint(None, tmp_path / "empty")


@pytest.mark.parametrize("damage", ["changed", "missing", "no manifest"])
def test_damage_is_named_and_the_checkpoint_passed_over(damage, saved):
    folder = (saved / "last").resolve()
    file = folder / ("manifest.json" if damage == "no manifest" else "model.safetensors")
    if damage == "changed":
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    else:
        file.unlink()
    with pytest.raises(DamagedCheckpoint, match=f"{file.name}.*the checkpoint is damaged"):
        read_checkpoint(folder)
    checkpoint, damaged = newest_intact_checkpoint(saved)
    assert checkpoint is None and list(damaged) == [folder]
