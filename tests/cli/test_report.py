"""`seghiero report`: which runs it shows, what it measures for that, and which files it replaces."""

from __future__ import annotations

import json
import shutil

import pytest

from seghiero_core.config.loading import load_config
from seghiero_core.report import files as report_files
from seghiero_core.run_files import recorded_files
from support.tiny import TINY, save_untrained


@pytest.fixture
def saved(small):
    return save_untrained(small, TINY).run_dir


def island(path):
    """The document in a page."""
    text = path.read_text()
    start = text.index('<script type="application/json"')
    return json.loads(text[text.index(">", start) + 1 : text.index("</script>", start)])


@pytest.fixture
def no_measuring(monkeypatch):
    def fail(*_, **__):
        raise AssertionError("measured again")

    return lambda: monkeypatch.setattr("seghiero_core.evaluation.checkpoint.evaluate", fail)


def test_a_report_is_made_of_what_the_training_measured(run, small, no_measuring):
    folder = load_config(small, TINY).run_dir
    assert run("train", small, *[word for option in TINY for word in ("--set", option)])[0] == 0
    assert island(folder / "report.html")["runs"][0]["command"].startswith(f"seghiero train {small} --set ")
    no_measuring()
    code, out, err = run("report", folder)
    assert (code, out) == (0, f"{folder / 'report.html'}\n"), err
    shown = island(folder / "report.html")
    assert (shown["runs"][0]["status"], len(shown["runs"][0]["images"])) == ("finished", 2)
    code, out, _ = run("report", folder, "--json", "--out", small.parent / "other.html")
    document = json.loads(out)
    assert code == 0 and (small.parent / "other.html").exists()
    for image in shown["runs"][0]["images"]:
        for name in ("picture", "truth", "prediction"):
            assert image.pop(name).startswith("data:image/")
    assert document | {"created": ""} == shown | {"created": ""}


def test_what_is_not_measured_yet_is_measured_once(run, saved, no_measuring):
    code, _, err = run("report", saved)
    assert code == 0, err
    before = island(saved / "report.html")
    code, out, _ = run("report", saved, "--split", "train")
    assert (code, out) == (0, f"{saved / 'report-train.html'}\n")
    assert island(saved / "report-train.html")["runs"][0]["evaluation"]["split"] == "train"
    no_measuring()
    assert run("report", saved)[0] == run("report", saved, "--split", "train")[0] == 0
    assert island(saved / "report.html") | {"created": ""} == before | {"created": ""}
    assert {saved / "report.html", saved / "report-train.html"} <= {*recorded_files(saved)}


def test_eval_writes_the_same_page_beside_its_results(run, saved, small):
    for words, name in (([], "val"), (["--decode", "top_down"], "val-top_down"), (["--confidence", "0.7"], None)):
        code, _, err = run("eval", saved, *words)
        path = saved / "eval" / f"{name or 'val-confidence0.7'}.html"
        assert code == 0 and f"{path}, the same" in err
        evaluation = island(path)["runs"][0]["evaluation"]
        assert evaluation.get("confidence") == (None if name else 0.7)
        assert evaluation["decode"] == ("top_down" if "top_down" in words else evaluation["decode"])
    assert any(predicted < 0 for _, predicted, _ in evaluation["levels"][0]["confusion"])
    val, out = small.parent / "val", small.parent / "out"
    code, _, err = run("eval", saved, "--images", val / "images", "--masks", val / "masks", "--out", out)
    assert code == 0 and f"{out / 'images.html'}, the same" in err
    (shown,) = island(out / "images.html")["runs"]
    assert [image["name"] for image in shown["images"]] == ["0.png", "1.png"]
    code, _, err = run("eval", saved, "--background", "sky")
    assert (
        "miou_without_background"
        in island(saved / "eval" / "val-background-sky.html")["runs"][0]["evaluation"]["levels"][0]
    )


def test_runs_are_compared_side_by_side(run, saved, small, monkeypatch):
    other = save_untrained(small, [*TINY, "output.name=other", "training.lr=0.5"], seed=2).run_dir
    monkeypatch.chdir(small.parent)
    code, out, err = run("report", saved, other)
    assert (code, out) == (0, "report.html\n"), err
    first, second = island(small.parent / "report.html")["runs"]
    assert (first["name"], second["name"]) == ("small", "other") and "lr: 0.5" in second["config"]
    assert [image["name"] for image in first["images"]] == [image["name"] for image in second["images"]]
    code, out, err = run("report", saved.parent, "--compare", "--out", "all.html")
    assert code == 0, err
    assert {each["name"] for each in island(small.parent / "all.html")["runs"]} == {"small", "other"}
    code, _, err = run("report", saved, "--compare")
    assert (code, "--compare needs at least two runs" in err) == (2, True)
    code, _, err = run("report", saved.parent)
    assert (code, "holds 2 runs" in err) == (2, True)
    twin = small.parent / "elsewhere" / "small"
    shutil.copytree(saved, twin, symlinks=True)
    run("report", saved, twin)
    assert [each["name"] for each in island(small.parent / "report.html")["runs"]] == [str(saved), str(twin)]
    flat = save_untrained(small, [*TINY, "classes.tree={sky: , rest: [grass, disc, ring]}", "output.name=flat"]).run_dir
    code, _, err = run("report", saved, flat)
    assert (code, "can't be compared: their classes differ (only in the first: ground, round;" in err) == (2, True)


def test_only_a_report_is_replaced(run, saved, tmp_path):
    mine = tmp_path / "mine.html"
    mine.write_text("<html>mine</html>")
    code, _, err = run("report", saved, "--out", mine)
    assert (code, f"{mine} is not a report" in err, mine.read_text()) == (2, True, "<html>mine</html>")
    assert run("report", saved, "--out", tmp_path / "new" / "page.html")[0] == 0
    assert run("report", saved, "--out", tmp_path / "new" / "page.html")[0] == 0
    code, _, err = run("report", saved, "--out", tmp_path)
    assert (code, "it is a folder" in err) == (2, True)
    (saved / "eval" / "val.html").write_text("mine")
    code, _, err = run("eval", saved)
    assert code == 0 and "val.html is not a report" in err and (saved / "eval" / "val.html").read_text() == "mine"


def test_force_removes_the_pages_of_the_old_run(run, saved, small):
    words = [word for option in TINY for word in ("--set", option)]
    assert run("train", small, *words, "--force")[0] == 0
    assert run("report", saved, "--split", "train")[0] == run("eval", saved)[0] == 0
    assert run("train", small, *words, "--force")[0] == 0
    assert not (saved / "report-train.html").exists() and not (saved / "eval").exists()
    assert (saved / "report.html").exists()
    assert run("train", small, *words, "--set", "training.epochs=3", "--resume")[0] == 0
    assert island(saved / "report.html")["runs"][0]["step"] == 6


def test_a_page_has_as_many_pictures_as_fit(run, saved, monkeypatch):
    assert run("report", saved)[0] == 0
    whole = (saved / "report.html").stat().st_size
    monkeypatch.setattr(report_files, "LIMIT", whole - 1)
    assert run("report", saved)[0] == 0
    shown = island(saved / "report.html")["runs"][0]["images"]
    assert (saved / "report.html").stat().st_size < whole and ["picture" in image for image in shown].count(True) == 1


def test_an_unknown_split_or_run_is_a_usage_error(run, saved, tmp_path, monkeypatch):
    code, _, err = run("report", saved, "--split", "test")
    assert (code, "--split test: the config has no such split" in err) == (2, True)
    monkeypatch.chdir(tmp_path)
    code, _, err = run("report", "nothing-here")
    assert (code, "nothing-here: no such run" in err) == (2, True)


def test_a_page_of_another_checkpoint_leaves_that_of_the_run_alone(run, saved):
    assert run("report", saved)[0] == 0
    before = (saved / "report.html").read_text()
    other = (saved / "last").resolve().with_name("step-00000099")
    shutil.copytree(saved / "last", other)
    code, out, err = run("report", other)
    assert (code, out) == (0, f"{saved / 'report-step-00000099.html'}\n"), err
    assert (saved / "report.html").read_text() == before


def test_a_warning_says_that_runs_were_measured_on_different_images(run, saved, small, tmp_path):
    other = tmp_path / "other.json"
    assert run("report", saved, "--json", "--out", tmp_path / "page.html")[0] == 0
    copy = tmp_path / "copy"
    shutil.copytree(saved, copy, symlinks=True)
    for image in [*(small.parent / "val" / "images").iterdir()][1:]:
        image.unlink()
    assert not other.exists()
    (copy / "eval" / "report" / "val.json").unlink()
    code, _, err = run("report", saved, copy, "--out", tmp_path / "both.html")
    assert code == 0 and "warning: the runs were measured on 1 and 2 images" in err
