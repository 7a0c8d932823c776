"""Who may write to a run folder, and what is removed from it."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from seghiero_core.config.loading import load_config
from seghiero_core.errors import ConfigError, DataError, DeviceError, SeghieroError, UsageError
from seghiero_core.run_files import LIST_NAME, record_file
from seghiero_core.training.loop import train
from seghiero_core.training.run_folder import begin_run, check_run_folder, lock_run_folder
from support.processes import ENVIRONMENT
from support.runs import start


def contents(folder: Path) -> dict[str, bytes]:
    """The content of every file below a folder, by its relative path."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def finished(small):
    """The config of a run that has ended."""
    config = load_config(small, ["training.epochs=1"])
    train(config)
    return config


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
    record_file(config.run_dir, config.run_dir / "model.onnx")
    old = (config.run_dir / "last").resolve()
    train(load_config(small, ["training.epochs=1", "training.batch_size=4"]), force=True)
    assert (config.run_dir / "notes.txt").exists()
    assert not (config.run_dir / "model.onnx").exists() and not old.exists()


def test_a_run_whose_checkpoints_were_deleted_is_not_overwritten(small):
    """Somebody who empties `checkpoints/` to save space keeps the exported model."""
    config = load_config(small, ["training.epochs=1"])
    train(config)
    shutil.rmtree(config.run_dir / "checkpoints")
    (config.run_dir / "checkpoints").mkdir()
    (config.run_dir / "model-v3.onnx").write_text("precious")
    before = contents(config.run_dir)
    with pytest.raises(UsageError, match="already holds a run.*--force"):
        train(config)
    assert contents(config.run_dir) == before


@pytest.mark.parametrize("flags", [{}, {"force": True}, {"resume": True}])
def test_a_folder_with_empty_checkpoints_and_other_things_is_no_run(small, flags):
    config = load_config(small, ["training.epochs=1"])
    (config.run_dir / "checkpoints").mkdir(parents=True)
    (config.run_dir / "best").mkdir()
    for name in ("model-v3.onnx", "best/weights.pt", "config.yaml", "metrics.jsonl"):
        (config.run_dir / name).write_text("precious")
    before = contents(config.run_dir)
    with pytest.raises(UsageError, match="small is not empty and not a run folder"):
        train(config, **flags)
    assert contents(config.run_dir) == before


def test_force_keeps_what_the_user_put_into_a_run(small, tmp_path):
    """Whatever its name: only listed files with the listed content go, and links are never followed."""
    config = load_config(small, ["training.epochs=1"])
    folder = config.run_dir
    train(config)
    outside = tmp_path / "outside"
    (outside / "hf").mkdir(parents=True)
    for name in ("model-fp16.onnx", "simplified.onnx", "hf/config.json", "hf/weights", "linked/a"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("ours")
    record_file(folder, folder / "simplified.onnx")
    record_file(folder, folder / "hf")
    record_file(folder, folder / "linked")
    record_file(folder, folder / "model-fp16.onnx")
    (folder / "simplified.onnx").write_text("precious")  # written over our file
    shutil.rmtree(folder / "linked")
    (outside / "a").write_text("ours")
    (folder / "linked").symlink_to(outside)
    (folder / "model-fp16.onnx").unlink()
    (folder / "model-fp16.onnx").symlink_to(outside / "a")
    step = (folder / "last").resolve().name
    for name in ("model-v3.onnx", f"checkpoints/{step}/notes.txt", "checkpoints/mine/model.safetensors", ".git/HEAD"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("precious")
    events = []
    train(config, force=True, notify=events.append)
    kept = {name for name, content in contents(folder).items() if content in (b"precious", b"ours")}
    assert kept == {
        *("model-v3.onnx", f"checkpoints/{step}/notes.txt", "checkpoints/mine/model.safetensors", ".git/HEAD"),
        *("simplified.onnx", "model-fp16.onnx"),
    }
    assert (folder / "linked").is_symlink() and (outside / "a").read_text() == "ours"
    assert not (folder / "hf").exists()
    (warning,) = [event["text"] for event in events if event["event"] == "warning"]
    assert "model-v3.onnx" in warning or "simplified.onnx" in warning
    train(load_config(small, ["training.epochs=3"]), resume=True)  # which finds the run's own checkpoint
    assert (folder / f"checkpoints/{step}/notes.txt").read_text() == "precious"
    assert (folder / "checkpoints/mine/model.safetensors").exists() and (folder / ".git/HEAD").exists()


@pytest.mark.parametrize("name", ["best", "last", "config.yaml", "metrics.jsonl", "checkpoints", LIST_NAME])
@pytest.mark.parametrize("resume", [False, True])
def test_what_is_in_the_way_is_named_before_anything_is_removed(tmp_path, name, resume):
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    begin_run(folder, resume=False)
    for link in ("best", "last"):
        (folder / link).symlink_to("checkpoints")
    for file in ("config.yaml", "metrics.jsonl"):
        (folder / file).write_text("ours")
    check_run_folder(folder, resume=resume, force=not resume)
    if name in ("best", "last"):
        (folder / name).unlink()
        (folder / name).mkdir()
        (folder / name / "weights.pt").write_text("precious")
    else:  # a link, through which training would write
        (folder / name).rename(elsewhere)
        (folder / name).symlink_to(elsewhere)
    with pytest.raises(UsageError, match=rf"run/{name} is a .* where training writes a .*; move it away"):
        check_run_folder(folder, resume=resume, force=not resume)


def test_an_old_run_without_a_list_is_resumed_but_not_overwritten(finished):
    (finished.run_dir / LIST_NAME).unlink()
    before = contents(finished.run_dir)
    with pytest.raises(UsageError, match=f"no list of .*{LIST_NAME}.*--force"):
        train(finished, force=True)
    assert contents(finished.run_dir) == before
    train(finished, resume=True)
    train(finished, force=True)


def test_trackers_write_beside_the_files_of_the_user(small):
    config = load_config(small, ["training.epochs=1", "training.trackers=[tensorboard]"])
    train(config)
    (config.run_dir / "seghiero/notes.txt").write_text("precious")
    before = contents(config.run_dir / "seghiero")
    train(load_config(small, ["training.epochs=1"]), force=True)
    assert len(before) > 2 and list(contents(config.run_dir / "seghiero")) == ["notes.txt"]


@pytest.fixture
def spoiled(small):
    """The config file of a run whose last image can't be decoded, which is found out last of all."""
    (small.parent / "val/images/1.png").write_bytes(b"nothing of an image")
    return small


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["output.dir=/proc/foo"], DeviceError, "can't create /proc/foo: its file system takes no new files"),
        (["output.dir=cfg.yaml/runs"], DeviceError, "cfg.yaml is a file"),
        (["init_from=nowhere.pth"], SeghieroError, "nowhere.pth"),
        (["init_from=short.pth"], SeghieroError, "short.pth"),
        (["backbone.pretrained=short.pth"], SeghieroError, "short.pth"),
    ],
    ids=str,
)
def test_what_fails_at_once_fails_before_images_are_decoded(spoiled, options, error, message, monkeypatch):
    monkeypatch.chdir(spoiled.parent)
    (spoiled.parent / "short.pth").write_bytes(b"abc")
    with pytest.raises(error, match=message):
        train(load_config(spoiled, options))
    assert not (spoiled.parent / "runs").exists()


def test_a_locked_folder_and_another_model_are_found_before_images_are_decoded(finished, small):
    (small.parent / "val/images/1.png").write_bytes(b"nothing of an image")
    with pytest.raises(ConfigError, match="head.proj_dim: 16 in the run, 32 now"):
        train(load_config(small, ["head.proj_dim=32"]), resume=True)
    with (
        lock_run_folder(finished.run_dir, resume=True, force=False),
        pytest.raises(UsageError, match="in use by process"),
    ):
        train(finished, force=True)


def test_a_folder_is_locked_while_the_data_is_checked(small, monkeypatch):
    """So that no other process writes between the reading of a checkpoint and the first step."""
    config = load_config(small)

    def try_to_lock(*_, **__):
        with pytest.raises(UsageError, match="in use by"), lock_run_folder(config.run_dir, resume=True, force=False):
            pass
        raise DataError("checked while locked")

    monkeypatch.setattr("seghiero_core.training.prepare.check_data", try_to_lock)
    with pytest.raises(DataError, match="checked while locked"):
        train(config)
    with lock_run_folder(config.run_dir, resume=True, force=False):
        pass


def test_a_folder_that_cannot_be_written_is_found_before_images_are_decoded(finished, small, monkeypatch):
    (small.parent / "val/images/1.png").write_bytes(b"nothing of an image")

    def refuse(dir, **_):  # as a read-only file system does, whatever the user's rights
        raise OSError(errno.EROFS, "Read-only file system", f"{dir}/tmp123")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(OSError, match="Read-only file system") as caught:
        train(finished, force=True)
    assert caught.value.filename == str(finished.run_dir)


def test_nothing_is_written_or_removed_before_the_data_is_found_sound(finished, small):
    (small.parent / "val/images/1.png").write_bytes(b"nothing of an image")
    before = contents(small.parent)
    with pytest.raises(DataError, match=r"1\.png"):
        train(finished, force=True)
    assert contents(small.parent) == before
    with pytest.raises(DataError, match=r"1\.png"):
        train(load_config(small, [f"output.dir={small.parent / 'a/b/c'}"]))
    assert contents(small.parent) == before and not (small.parent / "a").exists()


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
