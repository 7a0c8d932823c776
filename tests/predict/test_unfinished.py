"""A raster whose prediction stopped is continued, and gives the files of an uninterrupted one."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from seghiero_core import load
from seghiero_core.errors import UsageError
from seghiero_core.model.tiling import tile_spans
from seghiero_core.predict.files import predict_files
from seghiero_core.predict.geotiff import MaskTiles
from seghiero_core.predict.jobs import find_jobs
from seghiero_core.predict.pseudo_labels import PseudoLabels
from seghiero_core.predict.unfinished import Unfinished
from seghiero_core.predict.writer import PredictionOutputs
from support.masks import LEVELS, written_files
from support.processes import ENVIRONMENT
from support.rasters import ROTATED, read_raster, smooth, write_raster
from support.tiny import TINY, save_untrained

TILES = {"tile": 192, "overlap": 64}
OPTIONS = ["--tile", "192", "--overlap", "64"]
SIZE = (500, 560)


class Stopped(Exception):
    """What ends a prediction in these tests."""


ACROSS = len(tile_spans(SIZE[1], 192, 64))
DOWN = len(tile_spans(SIZE[0], 192, 64))


def predict_until(predictor, path, out, rows=None, scores=False, outputs=None):
    """Predict a raster, up to a row of tiles; gives the results, the events and the number of calls of the network."""
    events, calls = [], []

    def forward(images):
        calls.append(images)
        if rows is not None and len(calls) == ACROSS * rows + 3:  # by then the rows are written
            raise Stopped
        return predictor.forward(images)

    outputs = outputs or PredictionOutputs(predictor.hierarchy, predictor.undecided, scores)
    jobs = find_jobs([path], out)
    try:
        results = list(predict_files(replace(predictor, forward=forward), jobs, outputs, notify=events.append))
    except Stopped:
        results = None
    return results, events, len(calls)


@pytest.mark.parametrize("stopped_at", range(1, DOWN))
def test_going_on_gives_the_same_files(tiny_run, tmp_path, monkeypatch, stopped_at):
    monkeypatch.setattr("seghiero_core.predict.geotiff.TILE", 80)  # so that rows are left over
    array = smooth(*SIZE)
    array[240:270] = 0
    path = write_raster(tmp_path / "a.tif", array, nodata=0)
    predictor = load(tiny_run, device="cpu", confidence=0.4, **TILES)
    (whole,), *_ = predict_until(predictor, path, tmp_path / "whole", scores=True)
    assert predict_until(predictor, path, tmp_path / "out", stopped_at, scores=True)[0] is None
    assert not [name for name in written_files(tmp_path / "out") if not name.startswith(".a.unfinished/")]
    (result,), events, calls = predict_until(predictor, path, tmp_path / "out", scores=True)
    assert events[0] == {"event": "resumed", "image": path}
    assert events[-1] == {"event": "rows", "image": path, "done": SIZE[0], "height": SIZE[0]}
    assert calls == ACROSS * (DOWN - stopped_at + 1)  # one row of tiles again, for what it adds to the next
    assert result.measures == {**whole.measures, "files": result.measures["files"]}
    names = written_files(tmp_path / "whole")
    assert written_files(tmp_path / "out") == names
    for name in names:
        if name.endswith(".npz"):
            with np.load(tmp_path / "out" / name) as found, np.load(tmp_path / "whole" / name) as expected:
                assert all(np.array_equal(found[level], expected[level]) for level in LEVELS)
        else:
            assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_full_disk_at_the_end_costs_nothing(tiny_run, tmp_path, monkeypatch):
    path = write_raster(tmp_path / "a.tif", smooth(*SIZE))
    predictor = load(tiny_run, device="cpu", **TILES)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(MaskTiles, "save", full)
        with pytest.raises(OSError, match="No space"):
            predict_until(predictor, path, tmp_path / "out")
    (result,), _, calls = predict_until(predictor, path, tmp_path / "out")
    assert calls == 0 and result.measures["nodata"] == 0
    assert np.array_equal(read_raster(tmp_path / "out" / "a.leaf.tif"), predictor(path).ids["leaf"])


def test_pseudo_labels_go_on_too(tiny_run, tmp_path):
    array = smooth(*SIZE)
    array[240:270] = 0
    path = write_raster(tmp_path / "a.tif", array, nodata=0)
    predictor = load(tiny_run, device="cpu", mode="top_down", confidence=0.5, **TILES)
    whole, stopped, result = (
        predict_until(predictor, path, tmp_path / out, rows, outputs=PseudoLabels(predictor.hierarchy))[0]
        for out, rows in (("whole", None), ("out", 2), ("out", None))
    )
    assert stopped is None and written_files(tmp_path / "out") == ["a.tif"]
    assert (tmp_path / "out" / "a.tif").read_bytes() == (tmp_path / "whole" / "a.tif").read_bytes()
    assert result[0].measures["labeled"] == whole[0].measures["labeled"]
    mask, ids = read_raster(tmp_path / "out" / "a.tif"), predictor(path).ids
    assert (mask[240:270] == 255).all() and np.array_equal((mask == 255), (ids["level2"] == 255))
    assert result[0].measures["labeled"]["level2"] == (mask != 255).sum() > 0


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({"confidence": 0.5}, ["decoding"]),
        ({"overlap": 32}, ["overlap"]),
        ({"tta": ["flip"]}, ["tta"]),
        ({}, ["image"]),
    ],
)
def test_what_was_made_otherwise_is_begun_again(tiny_run, tmp_path, options, changed):
    path = write_raster(tmp_path / "a.tif", smooth(*SIZE))
    assert predict_until(load(tiny_run, device="cpu", **TILES), path, tmp_path / "out", 2)[0] is None
    if not options:
        write_raster(path, smooth(*SIZE, seed=1))
    predictor = load(tiny_run, device="cpu", **{**TILES, **options})
    (_,), events, _ = predict_until(predictor, path, tmp_path / "out")
    assert events[0] == {"event": "begun_again", "image": path, "changed": changed}
    assert np.array_equal(read_raster(tmp_path / "out" / "a.leaf.tif"), predictor(path).ids["leaf"])


def test_another_checkpoint_begins_again(tiny_run, starter_folder, tmp_path):
    path = write_raster(tmp_path / "a.tif", smooth(*SIZE))
    predict_until(load(tiny_run, device="cpu", **TILES), path, tmp_path / "out", 2)
    other = save_untrained(starter_folder / "cfg.yaml", [*TINY, "output.name=other"], seed=2).run_dir
    _, events, _ = predict_until(load(other, device="cpu", **TILES), path, tmp_path / "out", 2)
    assert events[0]["changed"] == ["checkpoint"]
    plain = load(tiny_run, device="cpu", **TILES)
    unknown = replace(plain, origin=None)
    _, events, _ = predict_until(unknown, path, tmp_path / "out", 2)
    assert events[0]["changed"] == ["network"]
    _, events, _ = predict_until(unknown, path, tmp_path / "out")
    assert events[0]["changed"] == ["network"]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("state.npz", lambda path: path.write_bytes(b"PK nothing")),
        ("overlay.rows", Path.unlink),
        ("1.tiles", lambda path: os.truncate(path, path.stat().st_size // 2)),
    ],
)
def test_damaged_leftovers_are_begun_again(tiny_run, tmp_path, monkeypatch, name, damage):
    monkeypatch.setattr("seghiero_core.predict.geotiff.TILE", 80)  # so that there are complete tiles
    path = write_raster(tmp_path / "a.tif", smooth(*SIZE))
    predictor = load(tiny_run, device="cpu", **TILES)
    predict_until(predictor, path, tmp_path / "out", 2)
    damage(tmp_path / "out" / ".a.unfinished" / name)
    (_,), events, calls = predict_until(predictor, path, tmp_path / "out")
    assert events[0]["changed"] == ["what was kept is damaged"]
    assert calls == ACROSS * DOWN
    for level in LEVELS:
        assert read_raster(tmp_path / "out" / f"a.{level}.tif").shape == SIZE


def test_two_processes_do_not_write_one_raster(tmp_path):
    first = Unfinished(tmp_path / "a", tmp_path / "a.tif", {})
    with pytest.raises(UsageError, match=r"a\.tif is being predicted to .* by another process"):
        Unfinished(tmp_path / "a", tmp_path / "a.tif", {})
    first.remove()
    Unfinished(tmp_path / "a", tmp_path / "a.tif", {}).remove()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_is_followed_by_one_that_goes_on(tiny_run, predict, tmp_path):
    path = write_raster(tmp_path / "a.tif", smooth(2000, 300), transform=ROTATED)  # 15 rows of tiles
    code = "import support.tiny; from seghiero_cli.main import main; main()"  # the network of `tiny_run`
    line = [sys.executable, "-c", code, "predict", str(tiny_run), str(path), *OPTIONS, "--device=cpu", "--out=killed"]
    process = subprocess.Popen(line, env=ENVIRONMENT, cwd=tmp_path, stderr=subprocess.DEVNULL)
    state, deadline = tmp_path / "killed" / ".a.unfinished" / "state.npz", time.monotonic() + 120
    while not state.exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert state.exists() and not (tmp_path / "killed" / "a.leaf.tif").exists()
    done = subprocess.run(line, env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "a.tif: going on with what is finished" in done.stderr, done.stderr
    assert predict(path, *OPTIONS)[0] == 0
    assert written_files(tmp_path / "killed") == written_files(tmp_path / "out")
    for level in LEVELS:  # another number of threads may round in another way
        found, expected = (read_raster(tmp_path / out / f"a.{level}.tif") for out in ("killed", "out"))
        assert (found == expected).mean() > 0.9999
