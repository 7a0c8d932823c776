"""The list of what seghiero wrote into a run, and what is removed by it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from seghiero_core.run_files import (
    LIST_NAME,
    record_file,
    recorded_files,
    remove_checkpoint,
    remove_recorded_files,
    start_list,
)
from support.processes import ENVIRONMENT


@pytest.fixture
def run_folder(tmp_path):
    """A folder with a list, and the file `ours` in it."""
    folder = tmp_path / "run"
    folder.mkdir()
    start_list(folder, ["metrics.jsonl"])
    (folder / "ours").write_text("written")
    record_file(folder, folder / "ours")
    return folder


def test_listed_files_are_ours_while_their_content_is(run_folder):
    (run_folder / "metrics.jsonl").write_text("grows")
    assert recorded_files(run_folder) == [run_folder / "metrics.jsonl", run_folder / "ours"]
    (run_folder / "metrics.jsonl").write_text("grows more")
    (run_folder / "ours").write_text("replaced by the user")
    assert recorded_files(run_folder) == [run_folder / "metrics.jsonl"]
    record_file(run_folder, run_folder / "ours")  # written again by us
    assert len(recorded_files(run_folder)) == 2


def test_folders_that_become_empty_go_and_others_stay(run_folder):
    for name in ("hf/config.json", "hf/sub/a", "eval/val.json", "eval/notes.txt"):
        (run_folder / name).parent.mkdir(parents=True, exist_ok=True)
        (run_folder / name).write_text(name)
    record_file(run_folder, run_folder / "hf")
    record_file(run_folder, run_folder / "eval/val.json")
    remove_recorded_files(run_folder)
    left = {path.relative_to(run_folder).as_posix() for path in run_folder.rglob("*") if path.is_file()}
    assert left == {LIST_NAME, "eval/notes.txt"} and not (run_folder / "hf").exists()


def test_nothing_outside_the_run_is_listed_or_believed(run_folder, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("precious")
    (run_folder / "link").symlink_to(outside)
    (run_folder / "file-link").symlink_to(outside / "file")
    before = (run_folder / LIST_NAME).read_text()
    for path in (outside / "file", run_folder / "link/file", run_folder / "file-link"):
        record_file(run_folder, path)
    assert (run_folder / LIST_NAME).read_text() == before
    with (run_folder / LIST_NAME).open("a") as file:
        for name in ("../outside/file", str(outside / "file"), "link/file", "file-link"):
            file.write(json.dumps({"path": name, "sha256": None}) + "\n")
        file.write('no json\n[1]\n{"path": 1, "sha256": null}\n{"path": "ou')  # and a torn line
    remove_recorded_files(run_folder)
    assert (outside / "file").read_text() == "precious" and (run_folder / "file-link").is_symlink()
    assert not (run_folder / "ours").exists()


def test_a_folder_without_a_list_gets_none(tmp_path):
    (tmp_path / "model.onnx").write_text("exported from a copied checkpoint")
    record_file(tmp_path, tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_processes_that_record_at_once_lose_nothing(run_folder):
    code = (
        "import sys; from pathlib import Path; from seghiero_core.run_files import record_file\n"
        "run, name = Path(sys.argv[1]), sys.argv[2]\n"
        "for i in range(200):\n"
        "    (run / f'{name}{i}').write_text(name); record_file(run, run / f'{name}{i}')"
    )
    words = [sys.executable, "-c", code, str(run_folder)]
    processes = [subprocess.Popen([*words, name], env=ENVIRONMENT) for name in "abc"]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert len(recorded_files(run_folder)) == 1 + 3 * 200


@pytest.mark.parametrize(
    ("name", "removed"),
    [("step-00000500", True), ("damaged-step-00000500-2", True), (".step-00000500.123", True), ("mine", False)],
)
def test_only_folders_of_checkpoints_are_removed(tmp_path, name, removed):
    folder = tmp_path / name
    folder.mkdir()
    for file in ("model.safetensors", "manifest.json"):
        (folder / file).write_text("{}")
    link = tmp_path / "step-00000900"
    link.symlink_to(folder)
    remove_checkpoint(link)
    assert (folder / "manifest.json").exists() and link.is_symlink()
    remove_checkpoint(folder)
    assert folder.exists() != removed


def test_the_files_of_the_user_in_a_checkpoint_stay(tmp_path):
    folder = tmp_path / "step-00000500"
    folder.mkdir()
    for file in ("model.safetensors", "manifest.json", "notes.txt"):
        (folder / file).write_text("{}")
    remove_checkpoint(folder)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    (folder / "model.safetensors").write_text("of another program: it has no manifest")
    remove_checkpoint(folder)
    assert len(list(folder.iterdir())) == 2


def test_a_record_after_a_torn_line_is_not_glued_to_it(run_folder):
    with (run_folder / LIST_NAME).open("a") as file:
        file.write('{"path": "ou')
    (run_folder / "later").write_text("written")
    record_file(run_folder, run_folder / "later")
    assert run_folder / "later" in recorded_files(run_folder)
