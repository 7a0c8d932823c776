"""`seghiero predict`: its files against the API, and everything a user can get wrong."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from seghiero_cli.main import main
from seghiero_core import load
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.predict import png
from seghiero_core.predict.files import find_jobs
from seghiero_core.predict.predictor import Prediction, Strip
from seghiero_core.predict.writer import PredictionWriter
from support.processes import ENVIRONMENT
from support.tiny import TINY, save_untrained

LEVELS = ("leaf", "level1", "level2")


@pytest.fixture
def predict(tiny_run, tmp_path, monkeypatch, capsys):
    """Runs `seghiero predict TINY_RUN ARGUMENTS --out out`; gives (exit code, stdout, stderr)."""

    def run(*arguments: object, model: Path = tiny_run) -> tuple[int, str, str]:
        line = ["seghiero", "predict", str(model), "--out", str(tmp_path / "out"), "--device=cpu", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", line)
        with pytest.raises(SystemExit) as stop:
            main()
        return (stop.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture
def images(tmp_path) -> Path:
    """A folder with five images, one of them in a sub-folder and of another size."""
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    rng = np.random.default_rng(1)
    for i in range(5):
        small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        where = folder / ("sub/4.png" if i == 4 else f"{i}.png")
        small.resize((70, 50) if i == 4 else (83, 61), Image.Resampling.BICUBIC).save(where)
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes(b"no image either")
    return folder


def stored(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def everything(folder: Path) -> list[str]:
    """All files but the legend."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if name != "classes.json")


def check_masks(stem: Path, expected: Prediction) -> None:
    for level in LEVELS:
        assert np.array_equal(stored(stem.with_name(f"{stem.name}.{level}.png")), expected.ids[level])


def test_files_hold_what_the_api_gives(predict, images, tiny_run, tmp_path):
    code, out, _ = predict(images)
    assert code == 0 and "5 of 5 images predicted" in out
    names = [f"{stem}.{end}.png" for stem in ("0", "1", "2", "3", "sub/4") for end in (*LEVELS, "overlay")]
    assert everything(tmp_path / "out") == sorted(names)
    predictor = load(tiny_run, device="cpu")
    legend = json.loads((tmp_path / "out" / "classes.json").read_text())
    assert legend == {
        "levels": {level: list(predictor.hierarchy.level_names(n)) for n, level in enumerate(LEVELS)},
        "undecided": None,
    }
    hierarchy = predictor.hierarchy
    for path in images.rglob("[0-9].png"):
        stem = (tmp_path / "out" / path.relative_to(images)).with_suffix("")
        expected = predictor(path)
        check_masks(stem, expected)
        for number, level in enumerate(LEVELS):
            with Image.open(f"{stem}.{level}.png") as mask:
                assert mask.mode == "P"
                colors = hierarchy.colors[list(hierarchy.levels[number].nodes)]
                assert np.array_equal(np.array(mask.convert("RGB")), colors[expected.ids[level]])
        mixed = stored(path) * 0.5 + hierarchy.colors[expected.ids["leaf"]] * 0.5
        assert np.abs(stored(Path(f"{stem}.overlay.png")) - mixed).max() <= 1


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


def modes() -> dict[str, Image.Image]:
    rgb = Image.fromarray(np.random.default_rng(2).integers(0, 256, (6, 9, 3), dtype=np.uint8)).resize((45, 30))
    wide = Image.fromarray((np.asarray(rgb.convert("L")).astype(np.uint16) << 8) + 77)
    modes = {"RGB": rgb, "I;16": wide}
    return modes | {mode: rgb.convert(mode) for mode in ("RGBA", "L", "LA", "P", "1", "CMYK")}


@pytest.mark.parametrize("mode", list(modes()))
def test_any_mode_is_read(predict, tiny_run, tmp_path, mode):
    path = tmp_path / ("image.tiff" if mode == "CMYK" else "image.png")
    modes()[mode].save(path)
    assert predict(path)[0] == 0
    rgb = modes()["L" if mode == "I;16" else mode].convert("RGB")
    check_masks(tmp_path / "out" / "image", load(tiny_run, device="cpu")(np.array(rgb)))


@pytest.mark.parametrize("read_ahead", [1 << 24, 100], ids=["read ahead", "read late"])
@pytest.mark.parametrize("tile", [[], ["--tile", "64", "--overlap", "32"]])
def test_exif_rotation_is_undone(predict, tiny_run, tmp_path, monkeypatch, tile, read_ahead):
    monkeypatch.setattr("seghiero_core.predict.picture.READ_AHEAD_PIXELS", read_ahead)
    image = Image.fromarray(np.random.default_rng(4).integers(0, 256, (7, 11, 3), dtype=np.uint8)).resize((110, 70))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    assert predict(tmp_path / "turned.png", *tile)[0] == 0
    options = {"tile": 64, "overlap": 32} if tile else {}
    upright = np.rot90(np.array(image), -1)
    check_masks(tmp_path / "out" / "turned", load(tiny_run, device="cpu", **options)(upright))


def test_tiles_batches_and_augmentation_are_those_of_the_api(predict, images, tiny_run, tmp_path):
    options = ["--tile", "64", "--overlap", "32", "--tta", "flip,scales", "--batch-size", "3", "--decode", "top_down"]
    assert predict(images, *options)[0] == 0
    predictor = load(tiny_run, device="cpu", tile=64, overlap=32, tta=["flip", "scales"], batch_size=3, mode="top_down")
    for path in images.rglob("[0-9].png"):
        check_masks((tmp_path / "out" / path.relative_to(images)).with_suffix(""), predictor(path))


def test_a_batch_gives_what_single_images_give(predict, images, tiny_run, tmp_path):
    code, out, _ = predict(images, "--batch-size", 4, "--json")
    assert code == 0 and len(out.splitlines()) == 5
    predictor = load(tiny_run, device="cpu")
    for path in images.rglob("[0-9].png"):
        stem = (tmp_path / "out" / path.relative_to(images)).with_suffix("")
        assert (stored(Path(f"{stem}.leaf.png")) == predictor(path).ids["leaf"]).mean() > 0.999


def test_one_bad_file_stops_nothing(predict, images, tmp_path):
    (images / "1.png").write_bytes((images / "1.png").read_bytes()[:300])
    (images / "2.jpg").write_bytes(b"nothing of an image")
    (images / "2.png").unlink()
    code, out, err = predict(images, "--json", "--batch-size", 2)
    rows = {Path(row["image"]).name: row for row in map(json.loads, out.splitlines())}
    assert code == 3 and len(rows) == 5
    assert [name for name, row in rows.items() if "error" in row] == ["1.png", "2.jpg"]
    assert "2 of 5 images failed" in err and "1.png" in err and "2.jpg" in err and "Traceback" not in err
    assert len(everything(tmp_path / "out")) == 3 * 4


def test_a_large_bad_file_leaves_nothing(predict, images, tmp_path, monkeypatch):
    """Large images are decoded late, when their first rows are needed."""
    monkeypatch.setattr("seghiero_core.predict.picture.READ_AHEAD_PIXELS", 100)
    (images / "1.png").write_bytes((images / "1.png").read_bytes()[:3000])
    code, _, err = predict(images, "--tile", "64", "--overlap", "32")
    assert code == 3 and "1 of 5 images failed" in err and "1.png can't be read" in err
    assert len(everything(tmp_path / "out")) == 4 * 4


def test_skip_existing_goes_on_where_it_was_stopped(predict, images, tmp_path):
    assert predict(images / "0.png", images / "1.png")[0] == 0
    (tmp_path / "out" / "1.level1.png").unlink()  # stopped in the middle of it
    before = (tmp_path / "out" / "0.leaf.png").stat().st_mtime_ns
    code, out, err = predict(images, "--skip-existing", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and "4 of 5 images predicted, 1 were there already" in err
    assert [Path(row["image"]).name for row in rows if row.get("skipped")] == ["0.png"]
    assert (tmp_path / "out" / "0.leaf.png").stat().st_mtime_ns == before
    assert len(everything(tmp_path / "out")) == 5 * 4


def test_globs_and_their_folders(predict, images, tmp_path):
    assert predict(f"{images}/**/[34].png")[0] == 0
    assert {name.split(".")[0] for name in everything(tmp_path / "out")} == {"3", "sub/4"}


def test_results_below_the_input_are_no_input(images, tmp_path):
    (images / "out").mkdir()
    Image.new("RGB", (8, 8)).save(images / "out" / "old.leaf.png")
    assert len(find_jobs([images], images / "out")) == 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.png"], "nowhere.png: there is no such file"),
        (["nowhere*.png"], "no file is named so"),
        (["EMPTY"], "holds no image"),
        (["IMAGES", "--tta", "flop"], "Did you mean 'flip'"),
        (["IMAGES", "--decode", "leave"], "Did you mean 'leaf'"),
        (["IMAGES", "--tile", "64", "--overlap", "64"], "half a tile"),
        (["IMAGES", "--batch-size", "0"], "batch-size"),
        (["IMAGES", "CLASH"], "would both be written"),
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
    assert code == 2 and "x.onnx: there is no such file" in err


def test_absent_device(predict, images, tmp_path):
    code, _, err = predict(images, "--device", "cuda:99")
    assert code == 4 and "cuda:99" in err


def test_too_many_pixels(predict, images, tmp_path):
    code, _, err = predict(images, "--max-pixels", 4000)
    assert code == 3 and "4 of 5 images failed" in err and "83x61 px" in err and "--max-pixels" in err


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
    assert everything(tmp_path / "out") == sorted(f"0.{end}.png" for end in (*LEVELS, "overlay"))


def test_out_that_cannot_be_made(tiny_run, images, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    line = ["seghiero", "predict", str(tiny_run), str(images), "--out", str(tmp_path / "file" / "out")]
    monkeypatch.setattr(sys, "argv", line)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 4 and str(tmp_path / "file") in capsys.readouterr().err


# ── the files ────────────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=30, derandomize=True, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(["palette", "gray16", "rgb"]), st.integers(1, 9))
def test_png_written_in_strips_reads_back(tmp_path_factory, height, width, kind, rows):
    rng = np.random.default_rng(height * 41 + width)
    shape, limit, dtype = {
        "palette": ((height, width), 256, np.uint8),
        "gray16": ((height, width), 1 << 16, np.uint16),
        "rgb": ((height, width, 3), 256, np.uint8),
    }[kind]
    values = rng.integers(0, limit, shape).astype(dtype)
    palette = rng.integers(0, 256, (256, 3), dtype=np.uint8) if kind == "palette" else None
    path = tmp_path_factory.mktemp("png") / "a.png"
    writer = png.PngWriter(path, height, width, kind, palette)
    for top in range(0, height, rows):
        writer.write(values[top : top + rows])
    writer.finish()
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        assert np.array_equal(np.array(image), values)
        if palette is not None:
            assert np.array_equal(np.array(image.convert("RGB")), palette[values])


def test_more_than_256_classes_are_16_bit(tmp_path):
    labels = [f"c{i}" for i in range(300)]
    hierarchy = Hierarchy.from_config({"labels": labels, "tree": {"a": labels[:150], "b": labels[150:]}, "ignore": 999})
    ids = np.arange(300, dtype=np.uint16).reshape(15, 20)
    strip = Strip(0, (ids, ids // 150), (np.ones((15, 20), np.float32),) * 2, None)
    writer = PredictionWriter(tmp_path / "x", hierarchy, 15, 20, probabilities=False)
    writer.write(strip, np.zeros((15, 20, 3), np.uint8))
    measures = writer.commit()
    assert measures["shares"]["level1"] == {"a": 0.5, "b": 0.5} and measures["confidence"]["leaf"] == 1
    assert np.array_equal(stored(tmp_path / "x.leaf.png"), ids)
    with Image.open(tmp_path / "x.level1.png") as mask:
        assert mask.mode == "P" and np.array_equal(np.array(mask), ids // 150)


# ── real processes ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def plain_run(starter_folder) -> Path:
    """A run that another process can load: without a backbone that only this one knows."""
    overrides = ["backbone={type: resnet, depth: 18}", TINY[1], "output.name=plain"]
    return save_untrained(starter_folder / "cfg.yaml", overrides).run_dir


def test_interrupted_leaves_whole_files_only(plain_run, images, tmp_path):
    for i in range(10, 400):
        (images / f"{i}.png").symlink_to(images / "0.png")
    line = [sys.executable, "-m", "seghiero_cli", "predict", str(plain_run), str(images), "--json", "--device", "cpu"]
    process = subprocess.Popen(
        [*line, "--out", str(tmp_path / "out")],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    process.stdout.readline()
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    found = everything(tmp_path / "out")
    assert found and not [name for name in found if name.startswith(".")]
    for name in found:
        assert stored(tmp_path / "out" / name).shape[:2] == (61, 83)


MEASURE = """
import sys
import numpy as np
import support.tiny
from seghiero_core import load

def peak():  # KiB; ru_maxrss would begin with that of the process that started this one
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

load(sys.argv[1])(np.zeros((1024, 1024, 3), np.uint8))
before = peak()
sys.argv = ["seghiero", "predict", *sys.argv[1:]]
try:
    from seghiero_cli.main import main
    main()
finally:
    print((peak() - before) / 1024, file=sys.stderr)
"""


def check_memory(run: Path, side: int, folder: Path) -> None:
    """Predicting a side x side image may add to what one tile takes: the image, decoded once, and a few strips."""
    small = Image.fromarray(np.random.default_rng(6).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    small.resize((side, side), Image.Resampling.BICUBIC).save(folder / "large.jpg", quality=70)
    line = [sys.executable, "-c", MEASURE, str(run), str(folder / "large.jpg"), "--out", str(folder / "out")]
    done = subprocess.run(line, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for level in LEVELS:
        with Image.open(folder / "out" / f"large.{level}.png") as mask:
            assert mask.size == (side, side)
    decoded = 4 * side**2  # bytes, as Pillow holds it
    strip = 1024 * side * (3 * (1 + 4) + 3)  # ids and confidence of three levels, and the image's rows
    carried = 9 * 128 * side * 4 * 2  # blended logits that wait for the next row of tiles
    grown = float(done.stderr.splitlines()[-1])
    print(f"{side}x{side} px: {grown:.0f} MiB more than one tile")
    assert grown < (decoded + 4 * strip + carried) / 2**20 + 100
    assert grown < 9 * 4 * side**2 / 2**20, "no less than the logits of the whole image"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc")
def test_memory_of_a_large_image_is_bounded(tiny_run, tmp_path):
    check_memory(tiny_run, 4000, tmp_path)


@pytest.mark.slow
def test_20000_by_20000(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    check_memory(tiny_run, 20_000, tmp_path)
