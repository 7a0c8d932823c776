"""The pages that short trainings on unusual data write, and what they show in a browser."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from seghiero_core.config.loading import load_config
from seghiero_core.report.page import read_page
from support.browser import choose_level, find, table, texts
from support.tiny import TINY


@pytest.fixture
def trained(run, small):
    """Trains `small` with the command, and reads its page."""

    def train(*options: str) -> dict:
        words = [word for option in (*TINY, *options) for word in ("--set", option)]
        code, _, err = run("train", small, *words)
        assert code == 0, err
        page = (load_config(small, TINY).run_dir / "report.html").read_text()
        assert "NaN" not in page[page.index('id="document"') : page.index("<script>")]
        (shown,) = read_page(page)["runs"]
        return shown

    return train


def rewrite_masks(small, change):
    for path in small.parent.glob("*/masks/*.png"):
        Image.fromarray(change(np.asarray(Image.open(path)))).save(path)


def keep_images(small, count):
    for path in small.parent.glob("*/*/*.png"):
        if int(path.stem) >= count:
            path.unlink()


def test_one_class(trained, small):
    document = yaml.safe_load(small.read_text()) | {"classes": {"labels": ["everything"]}}
    small.write_text(yaml.safe_dump(document))
    rewrite_masks(small, lambda mask: np.where(mask == 255, mask, 0).astype(np.uint8))
    shown = trained()
    (level,) = shown["evaluation"]["levels"]
    assert (level["miou"], level["confusion"]) == (1, [[0, 0, 2 * (48 * 64 - 9)]])
    assert [image["confusion"] for image in shown["images"]] == [[[]], [[]]] and shown["cells"] == [{}]
    assert shown["evaluation"]["mistakes_by_common_ancestor"] == [None]


def test_one_image(trained, small):
    keep_images(small, 1)
    shown = trained("training.batch_size=1")
    assert [image["name"] for image in shown["images"]] == ["0.png"] and "picture" in shown["images"][0]
    assert shown["images"][0]["miou"] == [level["miou"] for level in shown["evaluation"]["levels"]]
    assert ["val: images", "1"] in shown["data"]


def test_a_class_that_the_data_lacks(trained, small):
    rewrite_masks(small, lambda mask: np.where(mask == 3, 2, mask).astype(np.uint8))
    leaf = trained()["evaluation"]["levels"][0]
    ring = leaf["classes"][3]
    assert ring["pixels"] == 0 and ring["iou"] in (0, None)
    assert 3 not in {truth for truth, _, _ in leaf["confusion"]}


def test_validation_images_without_labels(trained, small):
    for path in small.parent.glob("val/masks/*.png"):
        Image.fromarray(np.full((48, 64), 255, np.uint8)).save(path)
    shown = trained()
    assert [level["miou"] for level in shown["evaluation"]["levels"]] == [None, None]
    assert [image["miou"] for image in shown["images"]] == 2 * [[None, None]]


def test_losses_that_are_not_finite(trained, show_file, small):
    shown = trained("training.lr=1e30", "training.epochs=3")
    losses = [step["loss"] for step in shown["curves"]["steps"]]
    assert losses[0] > 0 and None in losses and len(losses) == 6
    driver = show_file(load_config(small, TINY).run_dir / "report.html")
    assert f"Steps without a finite loss, which were skipped: {losses.count(None)}." in find(driver, "#curves").text
    assert "NaN" not in find(driver, "body").text


def test_sources(trained, show_file, small):
    for split in ("train", "val"):
        shutil.copytree(small.parent / split, small.parent / "highway" / split)
    (small.parent / "highway/val/images/1.png").unlink()
    (small.parent / "highway/val/masks/1.png").unlink()
    document = yaml.safe_load(small.read_text())
    sources = [{"name": "city"}, {"name": "<b>highway</b>", "root": "highway"}]
    document["dataset"] = {"train": "train", "val": "val", "sources": sources}
    small.write_text(yaml.safe_dump(document))
    shown = trained()
    assert [(image["source"], image["name"]) for image in shown["images"]] == [
        ("city", "0.png"),
        ("city", "1.png"),
        ("<b>highway</b>", "0.png"),
    ]
    assert ["val, <b>highway</b>: images", "1"] in shown["data"]
    driver = show_file(load_config(small, TINY).run_dir / "report.html")
    for level in (1, 0):
        choose_level(driver, level)
        rows = table(driver, "#sources tbody tr")
        for (name, each), row in zip(shown["evaluation"]["sources"].items(), rows, strict=True):
            assert row[:3] == [name, str(each["images"]), f"{100 * each['levels'][level]['miou']:.1f}"]
    for chart in driver.find_elements("css selector", "#curves .chart"):
        marks = {side: [e.text for e in chart.find_elements("css selector", f".{side}")] for side in ("end", "middle")}
        assert len(marks["end"]) >= 2, chart.text  # values at the axis, in a narrow range too
        assert all(text.isdigit() for text in marks["middle"][:-1]), chart.text  # steps; the last one is "Step"
    assert any("<b>highway</b> · " in text for text in texts(driver, "#gallery article"))
