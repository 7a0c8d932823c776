"""Who may write to a run folder, and what is removed from it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from seghiero_core.config.loading import load_config
from seghiero_core.errors import DeviceError, UsageError
from seghiero_core.training.loop import train
from seghiero_core.training.run_folder import lock_run_folder
from support.processes import ENVIRONMENT
from support.runs import start


def test_a_run_that_exists_is_kept_unless_asked_otherwise(small):
    config = load_config(small, ["training.epochs=1"])
    train(config)
    with pytest.raises(UsageError, match="--resume"):
        train(config)
    train(config, force=True)
    other = config.run_dir.parent / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("precious")
    with pytest.raises(UsageError, match="not a run folder"):
        train(config.model_copy(update={"output": config.output.model_copy(update={"name": "other"})}), force=True)
    assert (other / "thesis.txt").exists()


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_with_a_config_of_the_user_is_never_emptied(small, force):
    (small.parent / "config.yaml").write_text(small.read_text())
    config = load_config(small.parent / "config.yaml", ["output={dir: ., name: .}"])
    before = sorted(path for path in small.parent.rglob("*") if not path.name.endswith(".lock"))
    with pytest.raises(UsageError, match="not a run folder"):
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


def test_a_run_in_use_is_refused_and_a_killed_owner_is_no_owner(small):
    hold = (
        "import sys, time; from pathlib import Path; from seghiero_core.training.run_folder import lock_run_folder\n"
        "with lock_run_folder(Path(sys.argv[1]), resume=False, force=False):\n"
        "    print('held', flush=True); time.sleep(600)"
    )
    config = load_config(small, ["training.epochs=1"])
    words = [sys.executable, "-c", hold, str(config.run_dir)]
    with subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match=f"in use by process {owner.pid} on "):
            train(config, resume=True)
        owner.kill()
    assert list(config.run_dir.parent.glob(".*.lock"))  # which the killed process left
    train(config)
    assert not list(config.run_dir.parent.glob(".*"))


def test_workers_that_outlive_a_killed_run_do_not_block_the_next(small):
    config = load_config(small)
    process = start(small, "training.workers=2")
    children = [int(word) for word in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    for child in children:
        os.kill(child, signal.SIGSTOP)  # so that they can't notice that their parent is gone
    try:
        with pytest.raises(UsageError, match=f"in use by process {process.pid} on "):
            train(config, resume=True)
        process.kill()
        process.wait()
        assert len(children) == 2 and all(Path(f"/proc/{child}").exists() for child in children)
        with lock_run_folder(config.run_dir, resume=True, force=False):
            pass
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
        process.kill()
        process.communicate()


def test_one_process_cannot_lock_a_folder_twice(tmp_path):
    with (
        lock_run_folder(tmp_path / "run", resume=False, force=False),
        pytest.raises(UsageError, match=f"in use by process {os.getpid()} on "),
        lock_run_folder(tmp_path / "run", resume=True, force=False),
    ):
        pass
    with lock_run_folder(tmp_path / "run", resume=True, force=False):
        pass


def test_a_file_system_without_locks_is_named(small, monkeypatch):
    def no_locks(*_, **__):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(FileLock, "acquire", no_locks)
    with pytest.raises(DeviceError, match="runs is on a file system without file locks .*set another output.dir"):
        train(load_config(small))
