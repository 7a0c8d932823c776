"""Checkpoint folders: what is refused."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from seghiero_core.checkpoint import DamagedCheckpoint, newest_intact_checkpoint, read_checkpoint
from support.tiny import TINY, save_untrained


@pytest.fixture
def saved(starter_folder: Path, tmp_path: Path) -> Path:
    """A run folder of the test's own."""
    return save_untrained(starter_folder / "cfg.yaml", [*TINY, f"output.dir={tmp_path / 'runs'}"]).run_dir


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


def test_every_file_follows_the_umask(starter_folder, tmp_path):
    old = os.umask(0o027)
    try:
        run = save_untrained(starter_folder / "cfg.yaml", [*TINY, f"output.dir={tmp_path / 'runs'}"]).run_dir
    finally:
        os.umask(old)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (run / "last/").iterdir()}
    assert "model.safetensors" in modes and modes == dict.fromkeys(modes, 0o640)
    assert {stat.S_IMODE(path.stat().st_mode) for path in run.rglob("*") if path.is_dir()} == {0o750}
