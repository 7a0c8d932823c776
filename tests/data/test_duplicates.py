"""Paths without links."""

from __future__ import annotations

from pathlib import Path

from seghiero_core.data import duplicates


def test_paths_are_those_that_pathlib_resolves(tmp_path, monkeypatch):
    real = tmp_path / "real"
    (real / "deep").mkdir(parents=True)
    for name in ("a.png", "deep/b.png"):
        (real / name).touch()
    (tmp_path / "folder").symlink_to(real, target_is_directory=True)
    (real / "c.png").symlink_to(real / "deep" / "b.png")
    (real / "dangling.png").symlink_to(tmp_path / "nowhere")
    monkeypatch.chdir(real)
    names = ["a.png", "deep/b.png", "c.png", "dangling.png", "missing.png", "a.tar/0.jpg", "deep/..", "deep/../a.png"]
    paths = [Path(folder, name) for folder in (real, tmp_path / "folder", ".") for name in names]
    paths += [Path(), Path(".."), Path("/"), Path("/a.png")]
    assert list(duplicates._real_paths(paths)) == [str(path.resolve()) for path in paths]


def test_each_folder_is_resolved_once(tmp_path, monkeypatch):
    resolved = []
    resolve = Path.resolve
    monkeypatch.setattr(Path, "resolve", lambda path: resolved.append(path) or resolve(path))
    paths = [tmp_path / folder / f"{number}.png" for folder in ("a", "b") for number in range(100)]
    assert len(set(duplicates._real_paths(paths))) == 200
    assert resolved == [tmp_path / "a", tmp_path / "b"]
