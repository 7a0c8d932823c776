"""What links, kills and users leave in a run folder, and what the next run makes of it."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from seghiero_core.checkpoint import newest_intact_checkpoint
from seghiero_core.config.loading import load_config
from seghiero_core.errors import DeviceError, UsageError
from seghiero_core.run_files import LIST_NAME, recorded_files
from seghiero_core.training.dry_run import dry_run
from seghiero_core.training.loop import train
from seghiero_core.training.run_folder import lock_run_folder
from support.tiny import TINY

SHORT = [*TINY, "training.epochs=1"]


def test_a_run_behind_a_link_is_resumed_and_overwritten(small):
    (small.parent / "scratch").mkdir()
    (small.parent / "runs").symlink_to("scratch")
    train(load_config(small, SHORT))
    longer = load_config(small, [*TINY, "training.epochs=2"])
    dry_run(longer, resume=True)
    assert train(longer, resume=True)["step"] == 4
    assert (small.parent / "scratch/small/last").resolve().name == "step-00000004"
    train(load_config(small, SHORT), force=True)


def test_two_names_of_a_folder_have_one_lock(small):
    config = load_config(small, SHORT)
    train(config)
    (config.run_dir.parent / "alias").symlink_to("small")
    with (
        lock_run_folder(config.run_dir, resume=True, force=False),
        pytest.raises(UsageError, match="runs/small is in use by process"),
    ):
        train(load_config(small, [*SHORT, "output.name=alias"]), force=True)
    assert (config.run_dir / "last").exists()


def test_a_kill_in_the_first_save_leaves_nothing_in_the_way_of_the_same_process_id(small):
    config = load_config(small, SHORT)
    train(config)
    for name in ("best", "last"):
        (config.run_dir / name).unlink()
    checkpoint = config.run_dir / "checkpoints/step-00000002"
    checkpoint.rename(checkpoint.with_name(f".step-00000002.{os.getpid()}"))
    train(config, resume=True)
    assert [path.name for path in (config.run_dir / "checkpoints").iterdir()] == ["step-00000002"]


def test_a_kill_while_the_list_is_begun_leaves_an_empty_folder(small):
    config = load_config(small, SHORT)
    config.run_dir.mkdir(parents=True)
    (config.run_dir / f".{LIST_NAME}.123").write_text("")
    train(config)
    assert not list(config.run_dir.glob(".*"))


@pytest.mark.parametrize("name", ["weights.json", "class_weights.json", "bad_batch.json"])
def test_a_file_of_the_user_with_a_name_of_ours_is_neither_removed_nor_replaced(small, name):
    config = load_config(small, [*SHORT, "loss={terms: {dice: 1}}"])
    train(config)
    (config.run_dir / name).write_text("precious")
    with pytest.raises(UsageError, match=f"small/{name} isn't in the list of what seghiero wrote.*move it away"):
        train(config, force=True)
    assert (config.run_dir / name).read_text() == "precious" and (config.run_dir / "last").exists()


def test_what_only_some_runs_write_is_listed_then(small, monkeypatch):
    config = load_config(small, [*SHORT, "loss={terms: {leaf_cross_entropy: 1}, class_weights: auto}"])
    train(config)
    assert config.run_dir / "class_weights.json" in recorded_files(config.run_dir)
    plain = [*SHORT, "loss={terms: {dice: 1}}"]
    monkeypatch.setattr("seghiero_core.training.loop.is_bad_step", lambda *_: True)
    with pytest.raises(DeviceError, match="bad_batch.json"):
        train(load_config(small, [*plain, "training.max_bad_steps=1"]), force=True)
    assert not (config.run_dir / "class_weights.json").exists()
    assert config.run_dir / "bad_batch.json" in recorded_files(config.run_dir)
    monkeypatch.undo()
    train(load_config(small, plain), force=True)
    assert not (config.run_dir / "bad_batch.json").exists()


def test_records_that_the_list_does_not_know_are_not_appended_to(small):
    config = load_config(small, SHORT)
    train(config)
    listed = (config.run_dir / LIST_NAME).read_text().splitlines(keepends=True)
    (config.run_dir / LIST_NAME).write_text("".join(line for line in listed if "metrics.jsonl" not in line))
    with pytest.raises(UsageError, match="metrics.jsonl isn't in the list"):
        train(config, force=True)


def test_a_step_that_is_damaged_again_is_set_aside_again(small):
    config = load_config(small, SHORT)
    train(config)
    train(load_config(small, [*TINY, "training.epochs=2"]), resume=True)
    last = (config.run_dir / "last").resolve()
    for _ in range(2):
        (last / "model.safetensors").write_bytes(b"damaged")
        (last / "notes.txt").write_text("of the user, so the folder stays")
        train(load_config(small, [*TINY, "training.epochs=2"]), resume=True)
        last = (config.run_dir / "last").resolve()
    names = {path.name for path in (config.run_dir / "checkpoints").iterdir()}
    assert names >= {f"damaged-{last.name}", f"damaged-damaged-{last.name}", last.name}


def test_the_users_copy_of_a_checkpoint_is_no_checkpoint_of_the_run(small):
    config = load_config(small, SHORT)
    train(config)
    checkpoints = config.run_dir / "checkpoints"
    shutil.copytree(checkpoints / "step-00000002", checkpoints / "step-2-backup")
    assert newest_intact_checkpoint(config.run_dir)[0].folder.name == "step-00000002"


def test_a_run_folder_deleted_in_the_validation_repeats_it_when_resumed(small):
    config = load_config(small, SHORT)

    def delete(event):
        if event["event"] == "validating" and event["batch"] == 2:
            shutil.rmtree(config.run_dir)

    with pytest.raises(DeviceError, match="was deleted"):
        train(config, notify=delete)
    assert train(config, resume=True)["event"] == "validation"
    events = [json.loads(line)["event"] for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert events == ["validation"]
