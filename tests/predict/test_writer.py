"""The files of a prediction hold what the API gives, and appear whole or not at all."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from seghiero_core import load
from seghiero_core.errors import UsageError
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.model.tiling import Picture
from seghiero_core.predict import png
from seghiero_core.predict.piece import Piece
from seghiero_core.predict.writer import PredictionWriter
from support.masks import LEVELS, assert_masks_equal, read_png, written_files


def test_files_hold_what_the_api_gives(predict, images, tiny_run, tmp_path):
    code, out, _ = predict(images)
    assert code == 0 and "5 of 5 images predicted" in out
    names = [f"{stem}.{end}.png" for stem in ("0", "1", "2", "3", "sub/4") for end in (*LEVELS, "overlay")]
    assert written_files(tmp_path / "out") == sorted(names)
    predictor = load(tiny_run, device="cpu")
    legend = json.loads((tmp_path / "out" / "classes.json").read_text())
    hierarchy = predictor.hierarchy
    assert legend["levels"] == {level: list(hierarchy.level_names(n)) for n, level in enumerate(LEVELS)}
    assert legend["undecided"] is None and legend["nodata"] == 255
    assert legend.keys() == {"levels", "colors", "undecided", "nodata"}
    for number, level in enumerate(LEVELS):
        colors = [ImageColor.getrgb(color) for color in legend["colors"][level]]
        assert np.array_equal(colors, hierarchy.colors[list(hierarchy.levels[number].nodes)])
    for path in images.rglob("[0-9].png"):
        stem = (tmp_path / "out" / path.relative_to(images)).with_suffix("")
        expected = predictor(path)
        assert_masks_equal(stem, expected)
        for number, level in enumerate(LEVELS):
            with Image.open(f"{stem}.{level}.png") as mask:
                assert mask.mode == "P"
                colors = hierarchy.colors[list(hierarchy.levels[number].nodes)]
                assert np.array_equal(np.array(mask.convert("RGB")), colors[expected.ids[level]])
        mixed = read_png(path) * 0.5 + hierarchy.colors[expected.ids["leaf"]] * 0.5
        assert np.abs(read_png(Path(f"{stem}.overlay.png")) - mixed).max() <= 1


def test_json_is_one_line_per_image(predict, images, tiny_run):
    code, out, err = predict(images, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and len(rows) == 5 and "5 of 5" in err
    predictor = load(tiny_run, device="cpu")
    for row in rows:
        expected = predictor(row["image"])
        for number, level in enumerate(LEVELS):
            names = predictor.hierarchy.level_names(number)
            assert row["shares"][level] == {
                name: pytest.approx((expected.ids[level] == i).mean()) for i, name in enumerate(names)
            }
            assert row["confidence"][level] == pytest.approx(expected.confidence[level].mean(), rel=1e-5)
        assert row["ms"] > 0 and all(Path(file).exists() for file in row["files"]) and len(row["files"]) == 4


def test_probabilities_are_the_scores(predict, images, tiny_run, tmp_path):
    assert predict(images / "0.png", "--probabilities")[0] == 0
    expected = load(tiny_run, device="cpu")(images / "0.png")
    with np.load(tmp_path / "out" / "0.npz") as scores:
        assert sorted(scores) == sorted(LEVELS)
        for level in LEVELS:
            assert scores[level].dtype == np.float16 and scores[level].shape[1:] == (61, 83)
            np.testing.assert_allclose(scores[level].sum(axis=0, dtype=np.float32), 1, atol=5e-3)
            picked = np.take_along_axis(scores[level], expected.ids[level][None].astype(int), axis=0)[0]
            np.testing.assert_allclose(picked, expected.confidence[level], atol=1e-3)


def test_more_than_256_classes_are_16_bit(tmp_path):
    labels = [f"c{i}" for i in range(300)]
    hierarchy = Hierarchy.from_config({"labels": labels, "tree": {"a": labels[:150], "b": labels[150:]}, "ignore": 999})
    ids = np.arange(300, dtype=np.uint16).reshape(15, 20)
    piece = Piece(0, 0, (ids, ids // 150), (np.ones((15, 20), np.float32),) * 2)
    writer = PredictionWriter(tmp_path / "x", hierarchy, Picture(15, 20, None), probabilities=False)
    writer.write(piece, np.zeros((15, 20, 3), np.uint8))
    measures = writer.commit()
    assert measures["shares"]["level1"] == {"a": 0.5, "b": 0.5} and measures["confidence"]["leaf"] == 1
    assert np.array_equal(read_png(tmp_path / "x.leaf.png"), ids)
    with Image.open(tmp_path / "x.level1.png") as mask:
        assert mask.mode == "P" and np.array_equal(np.array(mask), ids // 150)


def test_a_full_disk_leaves_nothing_unfinished(predict, images, tmp_path, monkeypatch):
    written = []

    def write(self, rows):
        written.append(rows)
        if len(written) > 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        plain(self, rows)

    plain = png.PngWriter.write
    monkeypatch.setattr(png.PngWriter, "write", write)
    code, _, err = predict(images)
    assert code == 4 and "disk is full" in err
    assert written_files(tmp_path / "out") == sorted(f"0.{end}.png" for end in (*LEVELS, "overlay"))


@pytest.mark.parametrize("confidence", [None, 0.5])
def test_a_prediction_saves_what_the_command_writes(predict, images, tiny_run, tmp_path, confidence):
    predictor = load(tiny_run, device="cpu", confidence=confidence)
    options = [] if confidence is None else ["--confidence", confidence]
    assert predict(images / "0.png", *options)[0] == 0
    prediction = predictor(images / "0.png")
    assert prediction.names == {level: predictor.hierarchy.level_names(n) for n, level in enumerate(LEVELS)}
    paths = prediction.save(tmp_path / "saved" / "0.png")
    assert [path.name for path in paths] == [*(f"0.{end}.png" for end in (*LEVELS, "overlay")), "classes.json"]
    for path in paths:
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()
    assert sorted(paths) == sorted((tmp_path / "saved").iterdir())
    overlay = prediction.overlay()
    assert overlay.shape == (61, 83, 3) and np.array_equal(overlay, read_png(tmp_path / "out/0.overlay.png"))


def test_a_prediction_of_an_array_or_in_tiles_saves_too(tiny_run, images, tmp_path):
    array = read_png(images / "0.png")
    predictor = load(tiny_run, device="cpu", tile=64, overlap=32)
    predictor(array).save(tmp_path / "a")
    predictor(images / "0.png").save(str(tmp_path / "b"))
    for end in (*LEVELS, "overlay"):
        assert (tmp_path / f"a.{end}.png").read_bytes() == (tmp_path / f"b.{end}.png").read_bytes()


@pytest.mark.parametrize("text", ["not json", "[1]", '{"classes": ["a"]}'])
def test_a_classes_json_of_another_kind_is_kept(predict, images, tiny_run, tmp_path, text):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/classes.json").write_text(text)
    code, _, err = predict(images)
    assert code == 2 and "classes.json was not written by seghiero" in err
    with pytest.raises(UsageError, match=r"classes\.json was not written by seghiero"):
        load(tiny_run, device="cpu")(images / "0.png").save(tmp_path / "out/0")
    assert [path.read_text() for path in (tmp_path / "out").iterdir()] == [text]


def test_an_out_that_cannot_be_written_is_named(predict, images):
    code, _, err = predict(images, "--out", "/proc/foo")
    assert code == 4 and "can't create /proc/foo: its file system takes no new files; choose another folder" in err


def test_out_that_cannot_be_made(predict, images, tmp_path):
    (tmp_path / "file").touch()
    code, _, err = predict(images, "--out", tmp_path / "file" / "out")
    assert code == 4 and str(tmp_path / "file") in err
