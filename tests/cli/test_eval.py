"""`seghiero eval`: which checkpoint it takes, on which data, and what it keeps."""

from __future__ import annotations

import csv
import errno
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from seghiero_core.run_files import recorded_files, start_list
from support.tiny import TINY, save_untrained


@pytest.fixture
def saved(small):
    """A run of `small` with an untrained network and a list of its files, as training makes it."""
    folder = save_untrained(small, TINY).run_dir
    start_list(folder, ())
    return folder


def measure(run, *words: object) -> tuple[dict, str]:
    code, out, err = run("eval", *words, "--json")
    assert code == 0, err
    return json.loads(out), err


def test_unknown_run_is_a_usage_error(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run("eval", "nothing-here")
    assert (code, "nothing-here: no such run" in err) == (2, True)
    code, _, err = run("eval")
    assert (code, "no run in" in err) == (2, True)


def test_eval_says_which_checkpoint_it_takes(run, saved, small):
    for path in (saved, small, saved.parent):
        document, err = measure(run, path)
        assert f"{saved / 'best'} (step-00000001)" in err
        assert (document["checkpoint"], document["step"]) == (str((saved / "best").resolve()), 1)


@pytest.mark.parametrize("command", ["eval", "export", "predict"])
def test_of_several_runs_the_commands_are_listed(run, saved, small, command):
    save_untrained(small, [*TINY, "output.name=two words"])
    image = small.parent / "val/images/0.png"
    words = {"eval": ["--split", "val"], "export": ["--fp16"], "predict": [image]}[command]
    code, out, err = run(command, f"{saved.parent}/", *words)
    assert (code, out) == (2, "") and "holds 2 runs; name one of them" in err
    rest = " ".join(map(str, words))
    for run_name in (f"{saved}", f"'{saved.parent / 'two words'}'"):
        assert f"\n  seghiero {command} {run_name} {rest}\n" in err


def test_a_run_follows_its_data(run, saved, small, monkeypatch):
    before, _ = measure(run, saved)
    new = small.parent / "moved"
    new.mkdir()
    for split in ("train", "val"):
        (small.parent / split).rename(new / split)
    code, out, err = run("eval", saved)
    assert (code, out) == (3, "") and "If the data has moved" in err and "--set dataset.root=" in err
    monkeypatch.chdir(small.parent)
    after, err = measure(run, saved, "--set", "dataset.root=moved")
    assert after["data"]["images"] == str(new / "val/images")
    assert after["levels"] == before["levels"]
    assert "Not kept in the run" in err
    config = new / "other.yaml"
    config.write_text(small.read_text().replace("labels: [sky", "labels: [sky"))
    assert measure(run, saved, "--config", config)[0]["levels"] == before["levels"]
    code, out, err = run("export", saved, "--json", "--set", "dataset.root=moved")
    assert code == 0 and json.loads(out)["parity_images"] == "validation", err
    code, _, err = run("export", saved, "--set", "dataset.root=nowhere", "--out", new / "a.onnx")
    assert code == 3 and "nowhere/val/images does not exist" in err and not (new / "a.onnx").exists()


def test_data_with_other_mask_values(run, saved, small):
    before, _ = measure(run, saved)
    other = small.parent / "other"
    shutil.copytree(small.parent / "val", other / "val")
    for mask in (other / "val/masks").iterdir():
        values = np.array(Image.open(mask))
        Image.fromarray(np.where(values == 255, 0, values + 1).astype(np.uint8)).save(mask)
    config = small.with_name("other.yaml")
    text = small.read_text().replace(
        "[sky, grass, disc, ring]\n", "{1: sky, 2: grass, 3: disc, 4: ring}\n  ignore: 0\n"
    )
    config.write_text(text.replace("val/", "other/val/"))
    assert measure(run, saved, "--config", config)[0]["levels"] == before["levels"]
    config.write_text(text.replace("round: [disc, ring]", "circle: [disc, ring]"))
    code, out, err = run("eval", saved, "--config", config)
    assert (code, out) == (2, "") and "only there: circle; only in the run: round" in err


def test_new_images_with_masks(run, saved, small):
    new = small.parent / "new"
    for kind, suffix in (("images", "_rgb"), ("masks", "_gt")):
        (new / kind).mkdir(parents=True)
        shutil.copy(small.parent / "val" / kind / "1.png", new / kind / f"1{suffix}.png")
    folders = ["--images", new / "images", "--masks", new / "masks"]
    suffixes = ["--set", "dataset.image_suffix=_rgb", "--set", "dataset.mask_suffix=_gt"]
    document, err = measure(run, saved, *folders, *suffixes)
    assert (document["images"], document["split"]) == (1, None)
    assert document["data"] == {"images": str(new / "images"), "masks": str(new / "masks")}
    assert document["pixels"] == 48 * 64 - 9
    assert "Not kept in the run" in err and not (saved / "eval").exists()
    document, err = measure(run, saved, *folders, *suffixes, "--out", new / "results")
    assert json.loads((new / "results" / "images.json").read_text()) == document
    code, _, err = run("eval", saved, *folders, "--split", "train")
    assert code == 2 and "--split train selects data of the run" in err
    code, _, err = run("eval", saved, "--images", new / "images")
    assert code == 2 and "--images needs --masks" in err


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("backbone.type=resnet", "can't be changed for a trained checkpoint"),
        ("classes.ignore=0", "can't be changed for a trained checkpoint"),
        ("training.lr=1", "can't be changed for a trained checkpoint"),
        ("dataset.roots=a", "Did you mean 'dataset.root'?"),
        ("training.val_batch_size=0", "--set training.val_batch_size=0"),
        ("dataset.val=3", "--set dataset.val=3"),
    ],
)
def test_what_a_trained_checkpoint_refuses(run, saved, override, part):
    code, out, err = run("eval", saved, "--set", override)
    assert (code, out) == (2, "") and part in err and "Traceback" not in err


def test_a_new_root_that_moves_nothing_is_refused(run, small):
    text = small.read_text()
    for kind in ("images", "masks"):
        text = text.replace(f"val/{kind}", str(small.parent / "val" / kind))
        text = text.replace(f"train/{kind}", str(small.parent / "train" / kind))
    small.write_text(text.replace("dataset: {", "dataset: {root: elsewhere, "))
    saved = save_untrained(small, TINY).run_dir
    code, _, err = run("eval", saved, "--set", "dataset.root=new")
    assert code == 2 and "are not below its dataset.root" in err and "set dataset.val.images" in err


def test_eval_keeps_what_it_measured(run, saved):
    (saved / "eval").mkdir()
    (saved / "eval" / "mine.txt").write_text("mine")
    document, err = measure(run, saved)
    assert f"Kept: {saved / 'eval' / 'val'}.json\n      {saved / 'eval' / 'val'}-LEVEL.csv" in err
    assert json.loads((saved / "eval" / "val.json").read_text()) == document
    with (saved / "eval" / "val-leaf.csv").open(newline="") as file:
        (corner, *names), *rows = csv.reader(file)
    assert (corner, names) == ("truth", ["sky", "grass", "disc", "ring"])
    for (name, *counts), entry in zip(rows, document["levels"][0]["classes"], strict=True):
        assert (name, sum(map(int, counts))) == (entry["name"], entry["pixels"])
    right = sum(int(row[1 + i]) for i, row in enumerate(rows))
    assert right / document["pixels"] == pytest.approx(document["levels"][0]["pixel_accuracy"])
    ours = [file for file in (saved / "eval").rglob("*.*") if file.name != "mine.txt"]
    assert sorted(recorded_files(saved)) == sorted(ours)


def test_another_measurement_has_files_of_its_own(run, saved):
    measure(run, saved)
    before = {file.name: file.read_bytes() for file in (saved / "eval").glob("*.*")}
    for words in (
        ["--decode", "top_down"],
        ["--confidence", "0.7"],
        ["--split", "train"],
        ["--set", "training.precision=bf16"],
    ):
        measure(run, saved, *words)
    other = (saved / "checkpoints" / "step-00000001").rename(saved / "checkpoints" / "step-00000009")
    shutil.copytree(other, saved / "checkpoints" / "step-00000001")
    measure(run, other)
    after = {file.name: file.read_bytes() for file in (saved / "eval").glob("*.*")}
    assert {name: after[name] for name in before} == before
    documents = {name.removesuffix(".json") for name in after if name.endswith(".json")}
    expected = {"val", "val-top_down", "val-confidence0.7", "train", "val-bf16", "val-step-00000009"}
    assert documents == expected
    assert after["val-confidence0.7-leaf.csv"].splitlines()[0] == b"truth,sky,grass,disc,ring,(undecided)"
    measure(run, saved)
    again = {file.name: file.read_bytes() for file in (saved / "eval").glob("*.*")}
    timeless = [name for name in after if not name.endswith(".html")]  # a page says when it was written
    assert again.keys() == after.keys() and all(again[name] == after[name] for name in timeless)


def test_results_that_cannot_be_kept_are_printed_all_the_same(run, saved, tmp_path, monkeypatch):
    (saved / "eval").write_text("a file of the user's")
    document, err = measure(run, saved)
    assert document["pixels"] and f"Not kept in the run: can't write into {saved / 'eval'}" in err

    def read_only(folder):
        raise OSError(errno.EROFS, "Read-only file system", str(folder))

    with monkeypatch.context() as patch:
        patch.setattr("seghiero_core.atomic.make_folder", read_only)
        document, err = measure(run, saved)
    assert document["pixels"] and "Not kept in the run: [Errno 30] Read-only file system" in err
    code, out, err = run("eval", saved, "--out", saved / "eval")
    assert (code, out) == (4, "") and "measuring" not in err
    alone = tmp_path / "alone"
    shutil.copytree(saved / "best", alone)
    document, err = measure(run, alone)
    assert document["pixels"] and "Not kept: this checkpoint isn't in a run folder" in err


@pytest.mark.parametrize("name", ["val.json", "val-leaf.csv"])
def test_a_file_of_the_user_is_not_replaced(run, saved, tmp_path, name):
    for folder in (saved / "eval", tmp_path / "out"):
        folder.mkdir()
        (folder / name).write_text("mine")
    document, err = measure(run, saved)
    assert document["pixels"] and f"Not kept in the run: {saved / 'eval' / name} is not a result of eval" in err
    code, out, err = run("eval", saved, "--out", tmp_path / "out", "--json")
    assert code == 2 and json.loads(out) == document and f"{name} is not a result of eval" in err
    for folder in (saved / "eval", tmp_path / "out"):
        assert [file.read_text() for file in folder.iterdir()] == ["mine"]
    assert recorded_files(saved) == []


def test_thresholds_and_backgrounds_have_files_of_their_own(run, saved):
    for words in ([], ["--confidence", "0"], ["--background", "sky"]):
        measure(run, saved, *words)
    for threshold in ("0.1234567", "0.1234568"):
        measure(run, saved, "--confidence", threshold)
    names = {file.name.removesuffix(".json") for file in (saved / "eval").glob("*.json")}
    assert names == {
        *("val", "val-confidence0.0", "val-background-sky"),
        *("val-confidence0.1234567", "val-confidence0.1234568"),
    }


def test_results_are_kept_where_the_list_cannot_be_written(run, saved, monkeypatch):
    def read_only(*_):
        raise PermissionError(errno.EACCES, "Permission denied", "seghiero-files.jsonl")

    monkeypatch.setattr("seghiero_core.evaluation.files.record_file", read_only)
    _, err = measure(run, saved)
    assert "Kept: " in err and (saved / "eval" / "val.json").exists()


def test_a_checkpoint_of_a_run_without_links(run, saved):
    for name in ("best", "last"):
        (saved / name).unlink()
    measure(run, saved / "checkpoints" / "step-00000001")
    assert (saved / "eval" / "val-step-00000001.json").exists()


def test_the_listed_command_replaces_the_run_and_no_option(run, saved, small):
    save_untrained(small, [*TINY, "output.name=other"])
    runs = saved.parent
    for words, expected in (
        (["--out", runs, runs], f"--out {runs} {saved}"),
        ([runs, "--out", runs], f"{saved} --out {runs}"),
        (["--json", runs], f"--json {saved}"),
    ):
        code, _, err = run("eval", *words)
        assert code == 2 and f"\n  seghiero eval {expected}\n" in err
