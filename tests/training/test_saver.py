"""When checkpoints are written, and what is saved when disks, files or workers fail."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from seghiero_core.checkpoint import newest_intact_checkpoint
from seghiero_core.config.loading import load_config
from seghiero_core.errors import DataError, DeviceError, UsageError
from seghiero_core.training.loop import train
from support.runs import start, wait_for
from support.tiny import TINY


def saved_steps(run):
    return sorted(int(folder.name[5:13]) for folder in (run / "checkpoints").glob("step-*"))


def test_checkpoints_every_so_many_steps_or_minutes(small):
    seen = []

    def look(event):
        if event["event"] in ("step", "validation"):
            seen.append(saved_steps(config.run_dir)[-1:])

    options = ["training.batch_size=1", "training.epochs=1"]  # four steps
    config = load_config(small, [*options, "training.save_every=2"])
    train(config, notify=look)
    assert seen == [[], [], [2], [2], [4]]  # as reported: after a step before its checkpoint, in a validation after it
    assert saved_steps(config.run_dir) == [2, 4]

    config = load_config(small, [*options, "training.save_every=1s", "output.name=timed"])
    train(config, notify=lambda event: time.sleep(1.1) if event["event"] == "step" and event["step"] == 3 else None)
    assert saved_steps(config.run_dir)[0] == 3


@pytest.mark.parametrize("value", ["0", "-5", "10 minutes", "1.5", "true", "m", "0m"])
def test_save_every_takes_steps_or_a_time(small, value):
    with pytest.raises(UsageError, match="training.save_every: .*steps, or a time such as"):
        load_config(small, [f"training.save_every={value}"])


@pytest.fixture
def little_disk(tmp_path):
    """A file system for three checkpoints of the small run."""
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=450m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs isn't allowed here (it needs root)")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_up_while_saving(small, run, little_disk):
    words = ("train", small, "--set", f"output.dir={little_disk}", "--set", "training.save_every=1")
    ballast = little_disk / "ballast"
    code, _, err = run(*words, "--set", "training.epochs=1")
    assert code == 0, err
    folder = little_disk / "small"
    size = sum(file.stat().st_size for file in (folder / "last/").iterdir())
    free = shutil.disk_usage(little_disk).free
    with ballast.open("wb") as file:
        for _ in range((free - size // 2) // 2**20):
            file.write(bytes(2**20))
    code, _, err = run(*words, "--resume")
    assert code == 4
    assert "space" in err
    assert "Traceback" not in err
    checkpoint, damaged = newest_intact_checkpoint(folder)
    assert not damaged
    assert checkpoint.model_tensors()
    assert not list(folder.rglob(".*"))
    ballast.unlink()
    code, _, err = run(*words, "--resume")
    assert code == 0, err


def test_a_run_folder_that_is_deleted_meanwhile_is_saved_again(small):
    config = load_config(small)

    def delete(event):
        if event["event"] == "step" and event["step"] == 3:
            shutil.rmtree(config.run_dir)

    with pytest.raises(DeviceError, match="small was deleted .* Step 4 was saved in .*--resume") as caught:
        train(config, notify=delete)
    assert caught.value.exit_code == 4
    assert load_file(config.run_dir / "last/model.safetensors")
    whole = load_config(small, ["output.name=whole"])
    train(whole)
    train(config, resume=True)
    for name, tensor in load_file(whole.run_dir / "last/model.safetensors").items():
        assert tensor.equal(load_file(config.run_dir / "last/model.safetensors")[name])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_file_that_vanishes_in_the_second_epoch(small, workers):
    config = load_config(small, ["training.batch_size=1", f"training.workers={workers}"])

    def delete(event):
        if event["event"] == "validation":
            (small.parent / "train/images/2.png").unlink()

    with pytest.raises(DataError, match="2.png") as caught:
        train(config, notify=delete)
    assert caught.value.exit_code == 3
    assert "Traceback" not in str(caught.value)
    checkpoint, _ = newest_intact_checkpoint(config.run_dir)
    step = checkpoint.training_state()[1]["step"]
    assert step >= 4
    assert (f"Step {step} was saved" in str(caught.value)) == (step > 4)


def test_a_killed_worker(small):
    process = start(small, "training.workers=1", "training.save_every=1")
    wait_for(small.parent / "runs/small/last", process)
    assert process.poll() is None, process.communicate()[1]
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 4, err
    assert "a data loading worker died" in err
    assert "training.workers" in err
    assert "Traceback" not in err
    checkpoint, _ = newest_intact_checkpoint(small.parent / "runs/small")
    assert checkpoint.training_state()[1]["step"] >= 1


def test_a_step_without_memory_on_the_cpu_is_explained_and_the_steps_before_it_are_saved(small, monkeypatch):
    def fail():
        raise MemoryError

    config = load_config(small, [*TINY, "training.epochs=1", "training.batch_size=1"])
    with pytest.raises(DeviceError, match="cpu ran out of memory .* Step 3 was saved in .*--resume"):
        train(config, notify=lambda event: fail() if event.get("step") == 3 and event["event"] == "step" else None)
