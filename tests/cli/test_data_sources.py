"""`seghiero data ...` with `dataset.sources`: other mask values, suffixes and ignore values, and files of one name."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from seghiero_core.checkpoint import read_checkpoint
from seghiero_core.config.loading import load_config
from seghiero_core.data.audit import audit
from seghiero_core.data.check import check_data
from seghiero_core.data.overview import data_stats
from seghiero_core.data.samples import split_samples
from seghiero_core.export.images import available_samples, calibration_images
from seghiero_core.model.trained import with_other_data
from support.tiny import TINY, save_untrained

LABELS = ["sky", "grass", "disc", "ring"]
HIGHWAY = {1: "ground", 2: ["sky", "disc"], 3: "ring", 4: "ring"}
SOURCES = [
    {"name": "city"},
    {
        "name": "highway",
        "root": "highway",
        "labels": HIGHWAY,
        "ignore": 0,
        "image_suffix": "_rgb",
        "mask_suffix": "_gt",
    },
]


def paths_of(split: Path, kind: str) -> list[Path]:
    return sorted((split / kind).iterdir())


@pytest.fixture
def project(small) -> Path:
    """`small` as the source city, and files of the same names with other values as the source highway."""
    rng = np.random.default_rng(3)
    for split in ("train", "val"):
        shutil.copytree(small.parent / split, small.parent / "highway" / split)
        for kind, suffix in (("images", "_rgb"), ("masks", "_gt")):
            for path in paths_of(small.parent / "highway" / split, kind):
                new = path.rename(path.with_stem(f"{path.stem}{suffix}"))
                if kind == "masks":
                    Image.fromarray(rng.integers(0, 5, (48, 64)).astype(np.uint8)).save(new)
    document = yaml.safe_load(small.read_text())
    document["dataset"] = {"train": "train", "val": "val", "sources": SOURCES}
    small.write_text(yaml.safe_dump(document, sort_keys=False))
    return small


def set_sources(project: Path, *sources: dict) -> None:
    document = yaml.safe_load(project.read_text())
    document["dataset"]["sources"] = list(sources)
    project.write_text(yaml.safe_dump(document, sort_keys=False))


def counts_of(folder: Path) -> Counter:
    return Counter(np.concatenate([np.asarray(Image.open(path)).ravel() for path in folder.iterdir()]).tolist())


def test_check_prints_every_source_and_the_total(run, project):
    code, out, err = run("data", "check", project)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("ok   train: 8 images of 48x64 px (HxW), ")
    assert lines[1].startswith("     city: 4 images of ") and lines[2].startswith("     highway: 4 images of ")
    facts = json.loads(run("data", "check", project, "--json")[1])["val"]
    assert facts["images"] == 4 and list(facts["sources"]) == ["city", "highway"]
    ignored = counts_of(project.parent / "highway/val/masks")[0] / (2 * 48 * 64)
    assert facts["sources"]["highway"]["ignored"] == pytest.approx(ignored)
    assert facts["ignored"] == pytest.approx((ignored + facts["sources"]["city"]["ignored"]) / 2)
    assert facts["absent"] == facts["sources"]["highway"]["absent"] == []


def test_labels_of_sources_without_a_split_are_not_absent_from_it(run, project):
    set_sources(project, SOURCES[0], SOURCES[1] | {"val": None})
    facts = json.loads(run("data", "check", project, "--json")[1])
    assert facts["val"]["absent"] == facts["val"]["sources"]["city"]["absent"] == []


def test_stats_count_each_source_with_its_own_values(run, project):
    city, highway = (counts_of(project.parent / part / "train/masks") for part in ("", "highway"))
    code, out, _ = run("data", "stats", project)
    header, *rows = out.splitlines()
    assert code == 0 and "train %  train: city %  train: highway %  val %" in header
    assert any(row.startswith("  only ground ") for row in rows) and any(row.startswith("sky or disc ") for row in rows)
    document = json.loads(run("data", "stats", project, "--json")[1])
    train = document["splits"]["train"]
    assert [list(entry.values())[:3] for entry in train["sources"]["highway"]["labels"]] == [
        [1, "ground", highway[1]],
        [2, "sky or disc", highway[2]],
        [3, "ring", highway[3]],
        [4, "ring", highway[4]],
    ]
    total = {entry["name"]: entry["pixels"] for entry in train["labels"]}
    assert "value" not in train["labels"][0] and total["sky or disc"] == highway[2] and total["ground"] == highway[1]
    assert total["ring"] == city[3] + highway[3] + highway[4]
    rings = next(entry for entry in train["levels"][0]["classes"] if entry["name"] == "ring")
    assert rings["pixels"] == total["ring"]
    labelled = sum(total.values())
    assert train["levels"][0]["unlabelled"] == pytest.approx((highway[1] + highway[2]) / labelled)
    assert labelled == sum(city[v] for v in range(4)) + sum(highway[v] for v in range(1, 5))


def test_class_weights_count_a_source_as_often_as_it_is_drawn(project):
    set_sources(project, SOURCES[0], {**SOURCES[1], "weight": 3})
    config = load_config(project)
    audits = check_data(config).audits
    city, highway = (found.pixels for found in audits["train"].sources.values())
    assert np.array_equal(audits["train"].pixels, city + highway)
    assert np.array_equal(audits["train"].drawn_pixels([1, 3]), city + 3 * highway)
    tripled = [SOURCES[0], *({**SOURCES[1], "name": name} for name in "abc")]
    set_sources(project, *tripled)
    other = load_config(project)
    assert data_stats(config, audits)["class_weights"] == data_stats(other, check_data(other).audits)["class_weights"]


def test_faults_of_every_source_come_together_with_the_key_of_its_labels(run, project):
    for folder, value in (("train", 9), ("highway/train", 77)):
        path = paths_of(project.parent / folder, "masks")[0]
        Image.fromarray(np.full((48, 64), value, np.uint8)).save(path)
    code, out, _ = run("data", "check", project)
    lines = out.replace("\n       -> ", " ").splitlines()[3:5]
    assert code == 3 and all(line.startswith("     error: ") for line in lines)
    assert "0.png has values that are not labels: 9" in lines[0] and "dataset.sources.0.labels, or set" in lines[0]
    assert "0_gt.png has values that are not labels: 77" in lines[1] and "dataset.sources.1.ignore to the" in lines[1]
    shutil.rmtree(project.parent / "train/masks")
    paths_of(project.parent / "highway/train", "masks")[0].unlink()
    code, out, _ = run("data", "check", project)
    assert code == 3 and "error: city: dataset.sources.0.train.masks: " in out
    assert "relative to dataset.sources.0.root, which is relative to dataset.root." in out
    assert "1 of 4 images have no mask" in out and "set dataset.sources.1.image_suffix and dataset.s" in out


def test_swapped_folders_of_one_source(run, project):
    source = project.parent / "highway/train"
    source.rename(project.parent / "old")
    for kind, other, suffix in (("images", "masks", "_rgb"), ("masks", "images", "_gt")):
        (source / kind).mkdir(parents=True)
        for number, path in enumerate(paths_of(project.parent / "old", other)):
            path.rename(source / kind / f"{number}{suffix}.png")
    code, out, _ = run("data", "check", project)
    assert code == 3 and f"{source}/images/0_rgb.png and the other images look like masks" in out
    assert "-> Swap the folders `images` and `masks`" in out and out.count("error: ") == 1


def test_warnings_name_the_source(run, project):
    labels = {0: "sky", 1: "grass", 2: "disc", 4: "ring", 9: "round"}
    set_sources(project, *SOURCES, {"name": "again"}, {**SOURCES[1], "name": "most", "ignore": 3, "labels": labels})
    code, out, _ = run("data", "check", project)
    assert code == 0 and "8 images with the same masks are in several of dataset.sources: " in out
    assert "warning: most: no pixel has the label 'round', and " in out
    assert out.count("If 3 means round, write labels: {0: sky, 1: grass, 2: disc, 3: round, 4: ring} and ignore:") == 2


def test_a_fast_check_decodes_some_of_every_source(project, monkeypatch):
    monkeypatch.setattr("seghiero_core.data.audit.DECODED_BY_FAST_CHECK", 1)
    config = load_config(project)
    found = audit(split_samples(config.dataset, "train"), config.hierarchy, check="fast")
    assert [part.decoded for part in found.sources.values()] == [1, 1] and found.decoded == 2
    assert [sample.source for sample in found.samples] == [0] * 4 + [1] * 4


@pytest.mark.parametrize("words", [(), ("--augmented",)])
def test_preview_shows_every_source_by_name(run, project, tmp_path, monkeypatch, words):
    shown = {}

    def drawn(images, targets, *_, captions, **__):
        shown.update(zip(captions, targets, strict=True))
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr("seghiero_core.data.overview.prediction_grid", drawn)
    for path in paths_of(project.parent / "train", "images")[1:]:  # a source with a single image
        path.unlink()
    assert run("data", "preview", project, "--count", 4, "--out", tmp_path / "p.png", *words)[0] == 0
    assert list(shown) == ["city: 0.png", "highway: 0_rgb.png", "highway: 1_rgb.png", "highway: 2_rgb.png"]
    hierarchy = load_config(project).hierarchy
    assert set(np.unique(shown["highway: 0_rgb.png"])) <= {-1, 3, hierarchy.index_of("ground"), len(hierarchy)}


def test_convert_writes_the_values_of_the_source_that_is_named(run, project, tmp_path):
    document = yaml.safe_load(project.read_text())
    document["classes"]["colors"] = {"ground": [1, 1, 1], "ring": [9, 9, 9], "sky": [2, 2, 2]}
    project.write_text(yaml.safe_dump(document))
    (tmp_path / "painted").mkdir()
    Image.fromarray(np.array([[[1, 1, 1], [9, 9, 9], [0, 0, 0]]], np.uint8)).save(tmp_path / "painted/a.png")
    words, cfg = ("data", "convert", "colors", tmp_path / "painted"), ("--config", project)
    code, _, err = run(*words, tmp_path / "out", *cfg)
    assert code == 2 and "dataset.sources have mask values of their own; add --source with city or highway." in err
    code, _, err = run(*words, tmp_path / "out", *cfg, "--source", "town")
    assert code == 2 and "--source town: no such source; known: city, highway." in err
    assert run(*words, tmp_path / "out", *cfg, "--source", "highway", "--ignore", "0,0,0")[0] == 0
    assert np.asarray(Image.open(tmp_path / "out/a.png")).tolist() == [[1, 3, 0]]
    set_sources(project, SOURCES[0], {**SOURCES[1], "labels": None, "ignore": None})
    code, _, err = run(*words, tmp_path / "plain", *cfg, "--ignore", "1,1,1", "--ignore", "0,0,0")
    assert code == 0 and np.asarray(Image.open(tmp_path / "plain/a.png")).tolist() == [[255, 3, 255]]


def test_a_run_exports_from_all_sources_and_finds_them_where_they_moved(run, project, tmp_path, monkeypatch):
    saved = save_untrained(project, TINY).run_dir
    checkpoint = read_checkpoint(saved / "best")
    assert [sample.source for sample in available_samples(checkpoint, "val")] == [0, 0, 1, 1]
    assert len(calibration_images(checkpoint)) == 8
    (tmp_path / "moved").mkdir()
    for name in ("train", "val", "highway"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    assert available_samples(checkpoint, "val") == []
    monkeypatch.chdir(tmp_path)
    for overrides in (
        ["dataset.root=moved"],
        ["dataset.sources.0.root=moved", "dataset.sources.1.root=moved/highway"],
    ):
        moved = with_other_data(checkpoint, overrides=overrides)
        found = available_samples(moved, "val")
        assert [sample.source for sample in found] == [0, 0, 1, 1] and all(sample.mask.exists() for sample in found)
