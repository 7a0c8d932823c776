"""What goes wrong while a run goes on: kills, signals, disks, files, workers. The run is left in order every time."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from seghiero_core.checkpoint import newest_whole_checkpoint, read_checkpoint
from seghiero_core.config.loading import load_config
from seghiero_core.errors import CheckpointError, DataError, DeviceError, UsageError
from seghiero_core.training.loop import train
from support.processes import ENVIRONMENT, SUPPORT


def saved_steps(run):
    return sorted(int(folder.name[5:13]) for folder in (run / "checkpoints").glob("step-*"))


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
    assert len(set(report["steps_at_kills"])) > 3


def test_checkpoints_every_so_many_steps_or_minutes(small):
    seen = []

    def look(event):
        if event["event"] in ("step", "validation"):
            seen.append(saved_steps(config.run_dir)[-1:])

    options = ["training.batch_size=1", "training.epochs=1"]  # four steps
    config = load_config(small, [*options, "training.save_every=2"])
    train(config, notify=look)
    assert seen == [[], [], [2], [2], [2]]  # as told at the end of each step, before its checkpoint
    assert saved_steps(config.run_dir) == [2, 4]

    config = load_config(small, [*options, "training.save_every=1s", "output.name=timed"])
    train(config, notify=lambda event: time.sleep(1.1) if event["event"] == "step" and event["step"] == 3 else None)
    assert saved_steps(config.run_dir)[0] == 3


@pytest.mark.parametrize("value", ["0", "-5", "10 minutes", "1.5", "true", "m", "0m"])
def test_save_every_takes_steps_or_a_time(small, value):
    with pytest.raises(UsageError, match="training.save_every: .*steps, or a time such as"):
        load_config(small, [f"training.save_every={value}"])


def test_a_run_in_use_is_refused_and_a_killed_owner_is_no_owner(small):
    hold = (
        "import sys, time; from pathlib import Path; from seghiero_core.run_folder import claimed\n"
        "with claimed(Path(sys.argv[1]), resume=False, force=False):\n"
        "    print('held', flush=True); time.sleep(600)"
    )
    config = load_config(small, ["training.epochs=1"])
    words = [sys.executable, "-c", hold, str(config.run_dir)]
    with subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match=f"in use by process {owner.pid} on "):
            train(config, resume=True)
        owner.kill()
    assert list(config.run_dir.parent.glob(".*.lock"))  # what the killed one left
    train(config)
    assert not list(config.run_dir.parent.glob(".*"))


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
def test_a_half_written_file_is_recognised(small, name):
    config = load_config(small)
    train(config)
    last = (config.run_dir / "last").resolve()
    (last / name).write_bytes((last / name).read_bytes()[:-20])
    _, damaged = newest_whole_checkpoint(config.run_dir)
    assert list(damaged) == [last]
    events = []
    train(config, resume=True, notify=events.append)
    warnings = [event["text"] for event in events if event["event"] == "warning"]
    assert len(warnings) == 1
    assert str(last / name) in warnings[0] or f"{last}: {name} has changed" in warnings[0]
    assert read_checkpoint(config.run_dir / "last").folder == last
    assert read_checkpoint(config.run_dir / "best")
    assert not list((config.run_dir / "checkpoints").glob("damaged-*"))


def test_a_run_without_a_whole_checkpoint_is_not_begun_again_by_itself(small):
    config = load_config(small, ["training.epochs=1"])
    train(config)
    (config.run_dir / "last/training.json").unlink()
    with pytest.raises(CheckpointError, match="none of its checkpoints is whole.*--force"):
        train(config, resume=True)


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
    checkpoint, damaged = newest_whole_checkpoint(folder)
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
    checkpoint, _ = newest_whole_checkpoint(config.run_dir)
    step = checkpoint.training_state()[1]["step"]
    assert step >= 4
    assert (f"Step {step} was saved" in str(caught.value)) == (step > 4)


def start(small, *options):
    words = [sys.executable, "-m", "seghiero_cli", "train", small]
    for option in ("training.epochs=10000", *options):
        words += ["--set", option]
    process = subprocess.Popen(words, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    records = small.parent / "runs/small/metrics.jsonl"
    while not records.exists() and process.poll() is None:
        time.sleep(0.05)
    return process


def test_sigterm_to_the_whole_group_saves_and_exits_130(small):
    process = start(small, "training.workers=1")
    os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "go on with --resume" in err
    assert "Traceback" not in err
    assert read_checkpoint(small.parent / "runs/small/last").training_state()[1]["step"] >= 1


def test_a_second_ctrl_c_exits_at_once(small):
    # A step of many seconds: the first Ctrl-C waits for its end, the second doesn't.
    process = start(small, "transform.size=[1024, 1024]", "training.gradient_accumulation=2")
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    asked = time.monotonic()
    process.send_signal(signal.SIGINT)
    killer = threading.Timer(60, process.kill)
    killer.start()
    process.communicate()
    killer.cancel()
    assert process.returncode in (-signal.SIGINT, 130)
    assert time.monotonic() - asked < 5


def test_a_killed_worker(small):
    process = start(small, "training.workers=1", "training.save_every=1")
    while not (small.parent / "runs/small/last").exists():
        time.sleep(0.05)
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 4, err
    assert "a data loading worker died" in err
    assert "training.workers" in err
    assert "Traceback" not in err
    checkpoint, _ = newest_whole_checkpoint(small.parent / "runs/small")
    assert checkpoint.training_state()[1]["step"] >= 1
