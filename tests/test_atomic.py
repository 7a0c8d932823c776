"""Files and links that are replaced in one step, and nothing left over."""

from __future__ import annotations

from pathlib import Path

import pytest

from seghiero_core.atomic import check_writable, make_folder, remove_folder, replace_link, replacing, write_new_files
from seghiero_core.errors import DeviceError, UsageError


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"] and path.read_text() == "old"
    with replacing(path) as temporary:
        temporary.write_text("new")
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"] and path.read_text() == "new"


def test_a_link_moves_with_its_parent_folder(tmp_path):
    run = tmp_path / "run"
    for name in ("one", "two"):
        (run / "checkpoints" / name).mkdir(parents=True)
        replace_link(run / "last", run / "checkpoints" / name)
        assert (run / "last").resolve().name == name
    moved = run.rename(tmp_path / "moved")
    assert (moved / "last").resolve() == moved / "checkpoints" / "two"
    assert sorted(path.name for path in moved.iterdir()) == ["checkpoints", "last"]


def test_removing_a_folder_twice_is_fine(tmp_path):
    folder = tmp_path / "checkpoint"
    (folder / "inner").mkdir(parents=True)
    remove_folder(folder)
    remove_folder(folder)
    assert list(tmp_path.iterdir()) == []


def test_what_is_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match=r"can't write .*inner: .*file is a file"):
        write_new_files({tmp_path / "file" / "inner": "text"})
    with pytest.raises(UsageError, match=r"can't write .*folder: it is a folder"):
        write_new_files({tmp_path / "folder": "text"}, force=True)
    with pytest.raises(UsageError, match=r"file already exists, nothing was written; .*--force"):
        write_new_files({tmp_path / "file": "text", tmp_path / "other": "text"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_an_output_that_cannot_be_created_is_named_with_the_reason(tmp_path):
    (tmp_path / "file").touch()
    refusal = r"can't create .*: its file system takes no new files; choose another folder"
    for write in (
        lambda: make_folder(Path("/proc/foo/bar")),
        lambda: check_writable(Path("/proc")),
        lambda: write_new_files({Path("/proc/foo"): "text"}),
        lambda: write_new_files({Path("/proc/foo/bar"): "text"}),
    ):
        with pytest.raises(DeviceError, match=refusal):
            write()
    with pytest.raises(DeviceError, match=refusal), replacing(Path("/proc/foo")) as temporary:
        temporary.write_text("")
    with pytest.raises(DeviceError, match=r"can't write into .*inner: .*/file is a file; choose another"):
        make_folder(tmp_path / "file" / "inner")
