"""`seghiero predict` over many files: which images it takes, and what one failure does to the others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from seghiero_core import load
from seghiero_core.errors import UsageError
from seghiero_core.predict.jobs import find_jobs
from support.masks import assert_masks_equal, read_png, written_files


def test_tiles_batches_and_augmentation_are_those_of_the_api(predict, images, tiny_run, tmp_path):
    options = ["--tile", "64", "--overlap", "32", "--tta", "flip,scales", "--batch-size", "3", "--decode", "top_down"]
    assert predict(images, *options)[0] == 0
    predictor = load(tiny_run, device="cpu", tile=64, overlap=32, tta=["flip", "scales"], batch_size=3, mode="top_down")
    for path in images.rglob("[0-9].png"):
        assert_masks_equal((tmp_path / "out" / path.relative_to(images)).with_suffix(""), predictor(path))


def test_a_batch_gives_what_single_images_give(predict, images, tiny_run, tmp_path):
    code, out, _ = predict(images, "--batch-size", 4, "--json")
    assert code == 0 and len(out.splitlines()) == 5
    predictor = load(tiny_run, device="cpu")
    for path in images.rglob("[0-9].png"):
        stem = (tmp_path / "out" / path.relative_to(images)).with_suffix("")
        assert (read_png(Path(f"{stem}.leaf.png")) == predictor(path).ids["leaf"]).mean() > 0.999


def test_one_bad_file_stops_nothing(predict, images, tmp_path):
    (images / "1.png").write_bytes((images / "1.png").read_bytes()[:300])
    (images / "2.jpg").write_bytes(b"nothing of an image")
    (images / "2.png").unlink()
    code, out, err = predict(images, "--json", "--batch-size", 2)
    rows = {Path(row["image"]).name: row for row in map(json.loads, out.splitlines())}
    assert code == 3 and len(rows) == 5
    assert [name for name, row in rows.items() if "error" in row] == ["1.png", "2.jpg"]
    assert "2 of 5 images failed" in err and "1.png" in err and "2.jpg" in err and "Traceback" not in err
    assert len(written_files(tmp_path / "out")) == 3 * 4


def truncate_as_jpeg(path: Path) -> None:
    """Replace an image by the first half of its JPEG. Pillow reads all of a PNG when it looks for EXIF data."""
    jpeg = path.with_suffix(".jpg")
    Image.open(path).save(jpeg, quality=95)
    jpeg.write_bytes(jpeg.read_bytes()[: jpeg.stat().st_size // 2])
    path.unlink()


def test_a_large_bad_file_leaves_nothing(predict, images, tmp_path, monkeypatch):
    """Large images are decoded late, when their first rows are needed."""
    monkeypatch.setattr("seghiero_core.predict.picture.READ_AHEAD_PIXELS", 100)
    truncate_as_jpeg(images / "1.png")
    code, _, err = predict(images, "--tile", "64", "--overlap", "32")
    assert code == 3 and "1 of 5 images failed" in err and "1.jpg can't be read" in err
    assert len(written_files(tmp_path / "out")) == 4 * 4


@pytest.mark.parametrize("read_ahead", [1 << 24, 100], ids=["read ahead", "read late"])
def test_a_bad_file_in_a_batch_fails_alone(predict, images, tmp_path, monkeypatch, read_ahead):
    monkeypatch.setattr("seghiero_core.predict.picture.READ_AHEAD_PIXELS", read_ahead)
    truncate_as_jpeg(images / "1.png")
    code, out, err = predict(images, "--batch-size", 4, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 3 and "1 of 5 images failed" in err
    assert [Path(row["image"]).name for row in rows] == ["0.png", "1.jpg", "2.png", "3.png", "4.png"]
    assert [Path(row["image"]).name for row in rows if "error" in row] == ["1.jpg"]
    assert len(written_files(tmp_path / "out")) == 4 * 4


def test_skip_existing_continues_where_it_stopped(predict, images, tmp_path):
    assert predict(images / "0.png", images / "1.png")[0] == 0
    (tmp_path / "out" / "1.level1.png").unlink()  # stopped in the middle of it
    before = (tmp_path / "out" / "0.leaf.png").stat().st_mtime_ns
    code, out, err = predict(images, "--skip-existing", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and "4 of 5 images predicted, 1 skipped" in err
    assert [Path(row["image"]).name for row in rows if row.get("skipped")] == ["0.png"]
    assert (tmp_path / "out" / "0.leaf.png").stat().st_mtime_ns == before
    assert len(written_files(tmp_path / "out")) == 5 * 4


def test_globs_and_their_folders(predict, images, tmp_path):
    assert predict(f"{images}/**/[34].png")[0] == 0
    assert {name.split(".")[0] for name in written_files(tmp_path / "out")} == {"3", "sub/4"}


@pytest.mark.parametrize("extension", ["gif", "avif", "jp2", "jfif", "webp"])
def test_a_folder_with_images_of_less_usual_types(predict, images, tiny_run, tmp_path, extension):
    name = f"5.{extension}"
    save_options = {"save_all": True, "append_images": [Image.new("RGB", (8, 8))]} if extension == "gif" else {}
    Image.open(images / "0.png").save(images / name, format="JPEG" if extension == "jfif" else None, **save_options)
    code, out, err = predict(images)
    assert code == 0 and "6 of 6 images predicted" in out
    assert_masks_equal(tmp_path / "out" / "5", load(tiny_run, device="cpu")(images / name))


def test_files_that_are_no_images_are_counted(predict, images, tmp_path):
    (images / "a.heic").touch()
    (images / "sub/b.TXT").touch()
    (images / "Makefile").touch()
    code, _, err = predict(images, "--json")
    line = f"{images}: skipped 4 files of other types (2 .txt, 1 without an extension, 1 .heic)"
    assert code == 0 and line in err.splitlines()
    _, _, err = predict(images / "0.png", images / "1.png")
    assert "skipped" not in err


def test_results_below_the_input_are_not_inputs(images, tmp_path):
    (images / "out").mkdir()
    Image.new("RGB", (8, 8)).save(images / "out" / "old.leaf.png")
    assert len(find_jobs([images], images / "out")) == 5
    with pytest.raises(UsageError, match="contains no images outside of the folder for the results"):
        find_jobs([images], images)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.png"], "nowhere.png: no such file"),
        (["nowhere*.png"], "no file matches"),
        (["EMPTY"], "contains no images"),
        (["IMAGES", "--tta", "flop"], "Did you mean 'flip'"),
        (["IMAGES", "--decode", "leave"], "Did you mean 'leaf'"),
        (["IMAGES", "--tile", "64", "--overlap", "64"], "half a tile"),
        (["IMAGES", "--batch-size", "0"], "batch-size"),
        (["IMAGES", "CLASH"], "Predict one kind of file at a time, for example"),
    ],
)
def test_wrong_arguments_write_nothing(predict, images, tmp_path, arguments, words):
    (tmp_path / "empty").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "0.jpg")
    stands_for = {"IMAGES": images, "EMPTY": tmp_path / "empty", "CLASH": tmp_path / "0.jpg"}
    code, out, err = predict(*[stands_for.get(argument, argument) for argument in arguments])
    assert code == 2 and out == "" and words in err
    assert not (tmp_path / "out").exists()


def test_no_model(predict, images, tmp_path):
    code, _, err = predict(images, model=tmp_path / "runs" / "x")
    assert code == 2 and "no such run folder" in err
    code, _, err = predict(images, model=tmp_path / "x.onnx")
    assert code == 2 and "x.onnx: no such file" in err


def test_absent_device(predict, images, tmp_path):
    code, _, err = predict(images, "--device", "cuda:99")
    assert code == 4 and "cuda:99" in err


def test_too_many_pixels(predict, images, tmp_path):
    code, _, err = predict(images, "--max-pixels", 4000)
    assert code == 3 and "4 of 5 images failed" in err and "83x61 px" in err and "--max-pixels" in err
