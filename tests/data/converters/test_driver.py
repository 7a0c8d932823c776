"""Images are found by name and never changed, nothing is overwritten, and a killed conversion goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seghiero_core.data.converters.conversion import output_name, split_of
from support.annotations import GROUPS, NAMES, as_names, read_output, write_coco
from support.exif import save_turned

COMMAND = [sys.executable, "-m", "seghiero_cli", "data", "convert"]


def rows(height: int = 20, width: int = 30) -> np.ndarray:
    """A mask with the classes in bands, so that every turn shows."""
    return (np.arange(height * width).reshape(height, width) * 7 // (height * width)).astype(np.uint8)


def write(folder: Path, names: list[str], *, images: str = "", **changes) -> Path:
    """Write `all.json` for images of these names, and the images below `images`."""
    folder.mkdir(exist_ok=True)
    write_coco(folder / "all.json", dict.fromkeys(names, rows()), NAMES, polygons=False, groups=GROUPS)
    for i, name in enumerate(names):
        path = folder / images / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20), (i, i, i)).save(path)
    return folder / "all.json"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_images_are_links_to_the_originals_which_stay_as_they_are(run, tmp_path):
    path = write(tmp_path / "in", ["a.png", "b.png"])
    before = contents(tmp_path / "in")
    for words, linked in (((), True), (("--copy",), False)):
        out = tmp_path / f"out{linked}"
        assert run("data", "convert", "coco", path, out, *words)[0] == 0
        (image,) = out.glob("*/images/a.png")
        assert image.samefile(tmp_path / "in" / "a.png") == linked
        assert image.read_bytes() == before["a.png"] and not image.is_symlink()
    assert contents(tmp_path / "in") == before


def test_images_are_copied_where_the_file_system_has_no_links(run, tmp_path, monkeypatch):
    def no_links(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    path = write(tmp_path / "in", ["a.png", "b.png"])
    monkeypatch.setattr(os, "link", no_links)
    code, out, _ = run("data", "convert", "coco", path, tmp_path / "out")
    assert code == 0 and "0 hard links, 2 copies" in out
    assert len(list((tmp_path / "out").glob("*/images/*.png"))) == 2


def test_linked_images_are_the_files_that_links_point_to(run, tmp_path):
    path = write(tmp_path / "in", ["a.png", "b.png"])
    (tmp_path / "in" / "a.png").rename(tmp_path / "elsewhere.png")
    (tmp_path / "in" / "a.png").symlink_to(tmp_path / "elsewhere.png")
    assert run("data", "convert", "coco", path, tmp_path / "out")[0] == 0
    (image,) = (tmp_path / "out").glob("*/images/a.png")
    assert not image.is_symlink() and image.samefile(tmp_path / "elsewhere.png")


def test_a_killed_conversion_goes_on_and_writes_what_a_whole_one_writes(run, tmp_path):
    names = [f"{i:04}.png" for i in range(200)]
    path = write(tmp_path / "in", names)
    assert run("data", "convert", "coco", path, tmp_path / "whole")[0] == 0
    out = tmp_path / "out"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    kills = 0
    for _ in range(2):
        process = subprocess.Popen([*COMMAND, "coco", path, out], env=environment, stderr=subprocess.DEVNULL)
        done = len(list(out.glob("*/masks/*.png")))
        while process.poll() is None and len(list(out.glob("*/masks/*.png"))) < min(done + 40, 190):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills == 2 and not (out / "cfg.yaml").exists()
    (out / "train" / "masks" / f".0001.png.{process.pid}").write_bytes(b"half a file")
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("*/masks/*.png")}
    code, printed, err = run("data", "convert", "coco", path, out)
    assert code == 0 and "of them earlier" in printed, err
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    whole, found = contents(tmp_path / "whole"), contents(out)
    lines, again = (sorted(each.pop("conversion.jsonl").splitlines()) for each in (whole, found))
    assert found == whole and lines == again


def test_nothing_is_overwritten(run, tmp_path):
    path = write(tmp_path / "in", ["a.png", "b.png"])
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    code, _, err = run("data", "convert", "coco", path, out)
    assert code == 2 and f"{out} is not an empty folder" in err and contents(out) == {"mine.txt": b"mine"}
    (out / "mine.txt").unlink()
    assert run("data", "convert", "coco", path, out)[0] == 0
    (out / "cfg.yaml").write_text("# mine\n")
    mask = next(out.glob("*/masks/a.png"))
    mask.write_bytes(b"mine")
    (out / "conversion.jsonl").write_text((out / "conversion.jsonl").read_text().splitlines()[0] + "\n")
    assert run("data", "convert", "coco", path, out)[0] == 0
    assert mask.read_bytes() == b"mine" and (out / "cfg.yaml").read_text() == "# mine\n"


def test_other_choices_need_a_new_folder(run, tmp_path):
    path = write(tmp_path / "in", ["a.png", "b.png", "c.png"])
    out = tmp_path / "out"
    assert run("data", "convert", "coco", path, out)[0] == 0
    for words, text in (
        (("--unlabeled", "ignore"), "a conversion with other choices (unlabeled, classes differ)"),
        (("--val", "0.6"), "other choices (val differ)"),
    ):
        code, _, err = run("data", "convert", "coco", path, out, *words)
        assert code == 2 and text in err, err
    os.utime(path, (1, 1))
    code, _, err = run("data", "convert", "coco", path, out)
    assert code == 2 and "all.json was changed after" in err and "new folder" in err


def test_images_of_one_name_are_refused_unless_their_place_tells(run, tmp_path):
    path = write(tmp_path / "in", ["a.png", "b.png"])
    (tmp_path / "in" / "more").mkdir()
    Image.new("RGB", (30, 20)).save(tmp_path / "in" / "more" / "a.png")
    code, _, err = run("data", "convert", "coco", path, tmp_path / "out")
    assert code == 3 and f"{tmp_path}/in/a.png or {tmp_path}/in/more/a.png" in err and "--images" in err
    assert not (tmp_path / "out").exists()
    path = write(tmp_path / "cameras", ["left/a.png", "right/a.png"])
    assert run("data", "convert", "coco", path, tmp_path / "out")[0] == 0
    assert set(read_output(tmp_path / "out")[0]) == {"left/a", "right/a"}


def test_splits_tell_images_of_one_name_apart(run, tmp_path):
    for split, color in (("train", 10), ("val", 20)):
        write_coco(tmp_path / "in" / f"{split}.json", {"a.png": rows()}, NAMES, polygons=False, groups=GROUPS)
        (tmp_path / "in" / "images" / split).mkdir(parents=True)
        Image.new("RGB", (30, 20), (color, 0, 0)).save(tmp_path / "in" / "images" / split / "a.png")
    assert run("data", "convert", "coco", tmp_path / "in", tmp_path / "out")[0] == 0
    for split, color in (("train", 10), ("val", 20)):
        assert np.asarray(Image.open(tmp_path / "out" / split / "images" / "a.png"))[0, 0, 0] == color


def test_the_output_may_lie_in_the_input(run, tmp_path):
    write(tmp_path / "in", ["a.png", "b.png"])
    for _ in range(2):  # the second time the output has images of the same names
        code, _, err = run("data", "convert", "coco", tmp_path / "in", tmp_path / "in" / "out")
        assert code == 0, err


@pytest.mark.parametrize(
    "name", ["a b.png", "ä🐕.png", "$HOME;#.png", "a.b.c.png", "-x.png", "new\nline.png", "yes.png"]
)
def test_hostile_file_names(run, tmp_path, name):
    path = write(tmp_path / "in", [name, "other.png"])
    code, _, err = run("data", "convert", "coco", path, tmp_path / "out")
    assert code == 0, err
    assert (read_output(tmp_path / "out")[0][name.removesuffix(".png")] == as_names(rows())).all()
    if name == "ä🐕.png":
        assert run("data", "check", tmp_path / "out" / "cfg.yaml")[0] == 0


@pytest.mark.parametrize("name", ["../a.png", "/etc/a.png", "C:\\photos\\a.png", "..\\..\\a.png"])
def test_names_that_lead_out_of_the_folder(run, tmp_path, name):
    path = write(tmp_path / "in", ["a.png", "b.png"])
    document = json.loads(path.read_text())
    document["images"][0]["file_name"] = name
    path.write_text(json.dumps(document))
    assert run("data", "convert", "coco", path, tmp_path / "out")[0] == 0
    assert set(read_output(tmp_path / "out")[0]) == {"a", "b"}


def test_masks_drawn_on_the_stored_image_are_turned_as_the_image_is(run, tmp_path):
    path = write(tmp_path / "in", ["a.png", "b.png"])
    upright = np.repeat(rows(30, 20)[..., None] * 30, 3, axis=2)
    save_turned(upright, tmp_path / "in" / "a.png", 6)
    code, out, err = run("data", "convert", "coco", path, tmp_path / "out")
    assert code == 0 and "1 masks turned upright" in out, err
    mask = read_output(tmp_path / "out")[0]["a"]
    stored = np.asarray(Image.open(tmp_path / "in" / "a.png"))
    assert stored.shape[:2] == (20, 30) and mask.shape == (30, 20)
    assert (mask == as_names(np.rot90(rows(), -1))).all()


def test_more_than_255_classes_have_16_bits(run, tmp_path):
    path = write(tmp_path / "in", ["a.png", "b.png"])
    document = json.loads(path.read_text())
    document["categories"] += [{"id": 100 + i, "name": f"more {i}"} for i in range(300)]
    for annotation in document["annotations"]:
        annotation["category_id"] += 300 if annotation["category_id"] > 5 else 0
    path.write_text(json.dumps(document))
    assert run("data", "convert", "coco", path, tmp_path / "out", "--unlabeled", "ignore")[0] == 0
    masks, _, classes = read_output(tmp_path / "out")
    assert classes["ignore"] == 65535 and set(np.unique(masks["a"])) > {"more 206", "sky"}


def test_one_image_is_not_enough(run, tmp_path):
    path = write(tmp_path / "in", ["a.png"])
    code, _, err = run("data", "convert", "coco", path, tmp_path / "out")
    assert code == 3 and "at least 2 are needed" in err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("annotations/instances_train2017.json", "train"),
        ("valid/_annotations.coco.json", "val"),
        ("gtFine/test/berlin", "test"),
        ("trainval.txt", None),
        ("training/images", "train"),
        ("latest/strains", None),
        ("test/val.json", "val"),
    ],
)
def test_split_of(path, split):
    assert split_of(path) == split


def test_output_name():
    assert output_name("train2017/a.b.jpg", "train") == "a.b" and output_name("val/a.jpg", "train") == "val/a"
    assert output_name("D:\\x\\a.jpg", "train") == "a" and output_name("x/../../a.jpg", "train") == "a"
