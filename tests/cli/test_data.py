"""`seghiero data check | stats | preview`, as a user calls them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from seghiero_cli.tables import format_share
from seghiero_core.config.loading import load_config
from seghiero_core.data.loaders import SegmentationDataset
from seghiero_core.data.samples import split_samples
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.training.prepare import prepare
from support.tiny import TINY


@pytest.fixture
def project(starter_folder, tmp_path) -> Path:
    """A copy of the starter that a test may damage."""
    shutil.copytree(starter_folder / "data", tmp_path / "data")
    return Path(shutil.copy(starter_folder / "cfg.yaml", tmp_path / "cfg.yaml"))


def test_check_reports_images_and_sizes(run, project):
    code, out, err = run("data", "check", project)
    assert (code, err) == (0, "") and "ok   train: " in out and "ok   val: " in out and "without a pixel" not in out
    facts = json.loads(run("data", "check", project, "--json")[1])
    images = list((project.parent / "data" / "train" / "images").iterdir())
    height, width = np.asarray(Image.open(images[0])).shape[:2]
    assert facts["train"]["images"] == len(images) and facts["train"]["absent"] == []
    assert facts["train"]["sizes"] == [{"height": height, "width": width, "images": len(images)}]


def test_check_reports_the_faults_of_every_split_even_if_the_config_sets_check_fast(run, project):
    project.write_text(project.read_text().replace("dataset:", "dataset:\n  check: fast", 1))
    for split in ("train", "val"):
        mask = sorted((project.parent / "data" / split / "masks").iterdir())[-1]
        Image.fromarray(np.full_like(np.asarray(Image.open(mask)), 77)).save(mask)
    code, out, err = run("data", "check", project)
    assert code == 3 and out.count("has values that are not labels: 77") == 2
    assert "FAIL train: " in out and "FAIL val: " in out and err == "error: the data set has 2 errors; see above.\n"


def test_check_names_one_fault_of_many_files_once_per_split(run, project):
    for split in ("train", "val"):
        masks = sorted((project.parent / "data" / split / "masks").iterdir())
        for mask in masks[:7]:
            mask.write_bytes(b"")
        masks[7].unlink()
        masks[8].unlink()
        for mask in masks[7:9]:
            (project.parent / "data" / split / "images" / mask.with_suffix(".jpg").name).unlink(missing_ok=True)
            (project.parent / "data" / split / "images" / mask.name).unlink(missing_ok=True)
        Image.fromarray(np.zeros((5, 6), np.uint8)).save(masks[9])
    code, out, err = run("data", "check", project)
    lines = [line for line in out.splitlines() if line.startswith("     error: ")]
    assert code == 3 and err.startswith("error: the data set has 4 errors") and len(lines) == 4
    assert "7 files can't be read: 000.png (" in lines[0] and "and 4 more in " in lines[0]
    assert "is 5x6 px (HxW)" in lines[1]


def test_check_says_what_is_probably_wrong(run, small):
    """Binary masks of 0 and 255, the same folder twice, and crops larger than the images."""
    for split in ("train", "val"):
        for path in (small.parent / split / "masks").iterdir():
            Image.fromarray(np.asarray(Image.open(path)) // 2 % 2 * 255).save(path)
    text = small.read_text().replace("images: val/images, masks: val/masks", "images: train/images, masks: train/masks")
    text = text.replace("size: [48, 64]", "size: [64, 96]")
    classes = text[text.index("classes:") : text.index("backbone:")]
    small.write_text(text.replace(classes, "classes: {labels: [background, car]}\n"))
    code, out, err = run("data", "check", small)
    meant = "If 255 means car, write labels: {0: background, 255: car} and ignore: 254."
    assert (code, err) == (0, "") and out.count(meant) == 2
    assert "     warning: all images are also in train: 0.png, 1.png, 2.png and 1 more in " in out
    assert "     warning: transform.size [64, 96] is larger than every image" in out
    assert out.count("     classes without a pixel: car") == 2
    facts = json.loads(run("data", "check", small, "--json")[1])
    kinds = {split: [finding["kind"] for finding in facts[split]["findings"]] for split in facts}
    assert kinds == {"train": ["binary_masks", "padding"], "val": ["binary_masks", "shared_images"]}
    assert run("data", "stats", small)[2].count("warning: train: ") == 2
    events = []
    prepare(load_config(small, TINY), events.append)
    texts = [event["text"] for event in events if event["event"] == "warning"]
    assert [text.partition(":")[0] for text in texts] == ["train", "train", "val", "val"]
    one_line = out.replace("\n       -> ", " ")
    assert all(text.partition(": ")[2] in one_line for text in texts)


def test_a_split_is_one_folder_or_two(run, small):
    expected = run("data", "check", small)[1]
    both = ("{images: train/images, masks: train/masks}", "{images: val/images, masks: val/masks}")
    text = small.read_text()
    small.write_text(text.replace(both[0], "train").replace(both[1], "val"))
    assert run("data", "check", small) == (0, expected, "")
    assert load_config(small).dataset.val.masks == small.parent / "val" / "masks"
    small.write_text(text.replace(both[0], "train/images").replace(both[1], "val"))
    code, out, _ = run("data", "check", small)
    assert code == 3 and f"dataset.train.images: {small.parent / 'train/images/images'} does not exist." in out
    assert "`train: {images: FOLDER, masks: FOLDER}`, or `train: FOLDER` for a folder that holds images/ and" in out
    for value in ("[train/images, train/masks]", "3", "''"):
        small.write_text(text.replace(both[0], value))
        code, _, err = run("data", "check", small)
        assert code == 2 and "line 2: dataset.train: expected FOLDER, which holds images/ and masks/, or {images" in err


def test_stats_equal_brute_force(run, project):
    config = load_config(project)
    hierarchy = Hierarchy.from_config(config.classes)
    document = json.loads(run("data", "stats", project, "--json")[1])
    for split in ("train", "val"):
        masks = [np.asarray(Image.open(path)) for path in (project.parent / "data" / split / "masks").iterdir()]
        values = np.concatenate([mask.ravel() for mask in masks])
        labelled = values[values != config.classes.ignore]
        found = document["splits"][split]
        assert found["images"] == len(masks) and found["ignored"] == pytest.approx(1 - len(labelled) / len(values))
        for number, level in enumerate(found["levels"]):
            for entry in level["classes"]:
                node = hierarchy.index_of(entry["name"])
                below = [
                    value for value, of in hierarchy.values.items() if node == of or node in hierarchy.ancestors(of)
                ]
                assert entry["pixels"] == np.isin(labelled, below).sum(), (number, entry)
            assert sum(entry["share"] for entry in level["classes"]) + level["unlabelled"] == pytest.approx(1)
    assert set(document["class_weights"]["auto"]) == set(hierarchy.leaves)
    code, out, _ = run("data", "stats", project)
    assert code == 0 and all(name in out for name in (*hierarchy.nodes, "train %", "val %", "median_frequency"))


SHOES = {"labels": {0: "sky", 2: "boots", 5: "flats", 9: "shoes"}, "tree": {"sky": None, "shoes": ["boots", "flats"]}}


def test_stats_are_one_table_of_the_whole_tree(run, tmp_path):
    masks = {"train": np.zeros((200, 500), np.uint8), "val": np.full((200, 500), 9, np.uint8)}
    masks["train"][0, :3], masks["train"][1, :80] = 2, 9
    for split, mask in masks.items():
        for kind, array in (("images", np.zeros((200, 500, 3), np.uint8)), ("masks", mask)):
            (tmp_path / split / kind).mkdir(parents=True)
            Image.fromarray(array).save(tmp_path / split / kind / "a.png")
    config = {"dataset": {s: {k: f"{s}/{k}" for k in ("images", "masks")} for s in masks}, "classes": SHOES}
    (tmp_path / "cfg.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    code, out, _ = run("data", "stats", tmp_path / "cfg.yaml")
    rows = [line.split() for line in out.splitlines()]
    assert code == 0 and " ".join(rows[0]) == "class train % val % weight auto weight median frequency"
    assert rows[1][:3] == ["sky", "99.92", "0"] and len(rows[1]) == 5
    assert rows[2] == ["shoes", "0.08", "100.00"]
    assert rows[3][:3] == ["boots", "0.003", "0"] and rows[4][:3] == ["flats", "0", "0"]
    assert rows[5] == ["only", "shoes", "0.08", "100.00"]
    assert (
        "only X: pixels labeled X itself" in out
        and "weight: in the loss, with loss.class_weights: auto or median_frequency." in out
    )
    document = json.loads(run("data", "stats", tmp_path / "cfg.yaml", "--json")[1])
    assert document["splits"]["train"]["labels"][3] == {"value": 9, "name": "shoes", "pixels": 80, "share": 80 / 1e5}
    absent = {
        split: facts["absent"]
        for split, facts in json.loads(run("data", "check", tmp_path / "cfg.yaml", "--json")[1]).items()
    }
    assert absent == {"train": ["flats"], "val": ["sky", "boots", "flats"]}


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0, "0"), (0.5, "50.00"), (2e-4, "0.02"), (3.1e-5, "0.003"), (1.4e-6, "0.0001"), (2e-7, "<0.0001"), (1, "100.00")],
)
def test_rare_classes_differ_from_absent_ones(share, shown):
    assert format_share(share) == shown


def test_preview_shows_labels_at_every_level(run, project, tmp_path):
    code, out, _ = run("data", "preview", project, "--split", "val", "--count", 3, "--out", tmp_path / "a" / "p.png")
    assert code == 0 and out.strip() == str(tmp_path / "a" / "p.png")
    page = np.asarray(Image.open(tmp_path / "a" / "p.png")).reshape(-1, 3)
    hierarchy = Hierarchy.from_config(load_config(project).classes)
    for node in hierarchy.levels[-1].nodes:
        assert (page == hierarchy.colors[node]).all(axis=1).sum() > 1000


def test_augmented_preview_shows_the_samples_of_training(run, project, tmp_path, monkeypatch):
    config = load_config(project)
    drawn = []
    monkeypatch.setattr(
        "seghiero_core.data.overview.prediction_grid",
        lambda images, targets, *_, **__: drawn.extend(zip(images, targets, strict=True)) or Image.new("RGB", (1, 1)),
    )
    assert run("data", "preview", project, "--augmented", "--count", 2, "--out", tmp_path / "p.png")[0] == 0
    samples = split_samples(config.dataset, "train")
    hierarchy = Hierarchy.from_config(config.classes)
    dataset = SegmentationDataset(samples, hierarchy, config.transform, config.training.seed)
    for (image, target), index in zip(drawn, (0, len(samples) // 2), strict=True):
        expected = dataset[(0, index, 0)]
        assert np.array_equal(image, expected["image"].permute(1, 2, 0)) and np.array_equal(target, expected["target"])
        assert target.shape == config.transform.size


def test_preview_needs_an_image_format(run, project, tmp_path):
    code, _, err = run("data", "preview", project, "--out", tmp_path / "picture")
    assert code == 2 and "no extension of an image format; try picture.png" in err.replace("\n", " ")


def test_preview_of_a_missing_split(run, project):
    code, _, err = run("data", "preview", project, "--split", "test")
    assert code == 2 and "no such split; known: train, val" in err
