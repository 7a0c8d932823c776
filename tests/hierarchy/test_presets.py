"""Class trees that come with the package: their published numbers, their use in a config, and a run with one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from seghiero_core.config.loading import load_config
from seghiero_core.errors import ConfigError
from seghiero_core.hierarchy.presets import expand_preset, preset_names, read_preset
from seghiero_core.hierarchy.tree import Hierarchy
from support.processes import ENVIRONMENT
from support.tiny import TINY
from support.trees import CAMVID, hierarchies_agree

# Classes per level, finest first; mask values and the ignore value as the data sets publish them.
PUBLISHED = {
    "cityscapes": ([19, 7], range(19), 255),
    "mapillary-v2": ([124, 16, 4], range(124), 255),
    "pascal-person-part": ([7, 3, 2], range(7), 255),
    "lip": ([20, 3, 2], range(20), 255),
    "ade20k": ([150, 14, 3], range(1, 151), 0),
    # 182 label ids without the eleven things for which COCO has no masks; masks hold the id minus one.
    "coco-stuff": ([171, 27, 4, 2], {*range(182)} - {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}, 255),
    "camvid": ([11, 6, 2], range(11), 255),
    "camvid-32": ([31, 11, 6, 2], {*range(32)} - {30}, 30),
}
SHARED_COLORS = {  # as published: the number of labels with the color of an earlier one
    "ade20k": 1,
    "mapillary-v2": 25,
}
SECTIONS = """dataset:
  train: {images: train/images, masks: train/masks}
  val: {images: val/images, masks: val/masks}
classes:
"""


@pytest.fixture
def write(tmp_path):
    def write_config(classes: str) -> Path:
        path = tmp_path / "cfg.yaml"
        path.write_text(SECTIONS + classes)
        return path

    return write_config


def test_the_documented_presets_exist():
    assert preset_names() == sorted(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_the_published_levels_values_and_colors(name):
    levels, values, ignore = PUBLISHED[name]
    preset = read_preset(name)
    assert set(preset) == {"source", "labels", "tree", "ignore", "colors"}
    assert len(preset["source"]) > 40
    hierarchy = Hierarchy.from_config({"preset": name})
    assert [len(level.nodes) for level in hierarchy.levels] == levels
    assert set(hierarchy.values) == set(values)
    assert hierarchy.ignore == ignore
    labels = list(preset["labels"].values())
    assert hierarchy.leaves == tuple(labels), "labels are leaves, in the order of mask values"
    assert list(preset["colors"]) == labels
    assert len(labels) - len({tuple(color) for color in preset["colors"].values()}) == SHARED_COLORS.get(name, 0)
    assert max(Counter(node.casefold() for node in hierarchy.nodes).values()) == 1, "names that differ in case alone"
    assert all(node == node.strip() for node in hierarchy.nodes)


@pytest.mark.parametrize(
    ("name", "value", "color", "path"),
    [  # spot checks across each list, which would show an offset by one
        ("cityscapes", 13, (0, 0, 142), ["car", "vehicle"]),
        ("cityscapes", 10, (70, 130, 180), ["sky"]),
        ("mapillary-v2", 21, (128, 64, 128), ["Road", "flat", "construction"]),
        ("mapillary-v2", 90, (250, 170, 30), ["Traffic Light - General (Single)", "traffic light", "object"]),
        ("mapillary-v2", 116, (0, 0, 192), ["Wheeled Slow", "vehicle", "object"]),
        ("pascal-person-part", 5, (128, 0, 128), ["upper leg", "lower body", "person"]),
        ("lip", 13, (0, 0, 255), ["face", "upper body", "person"]),
        ("ade20k", 13, (150, 5, 61), ["person", "living thing", "nature"]),
        ("ade20k", 150, (92, 0, 255), ["flag", "signage", "object"]),
        ("coco-stuff", 0, (128, 0, 0), ["person", "person-things", "outdoor-super-things", "things"]),
        ("coco-stuff", 181, (0, 224, 192), ["wood", "solid-stuff", "outdoor-super-stuff", "stuff"]),
        ("camvid-32", 31, (64, 192, 0), ["Wall", "buildings", "structure", "static"]),
    ],
)
def test_spot_checks(name, value, color, path):
    hierarchy = Hierarchy.from_config({"preset": name})
    node = hierarchy.values[value]
    assert [hierarchy.nodes[i] for i in (node, *hierarchy.ancestors(node))] == path
    assert tuple(hierarchy.colors[node]) == color


def test_camvid_32_merges_into_camvid():
    fine, coarse = (Hierarchy.from_config({"preset": name}) for name in ("camvid-32", "camvid"))
    assert hierarchies_agree(coarse, Hierarchy.from_config({**CAMVID, "colors": read_preset("camvid")["colors"]}))
    merged = ["Sky", "buildings", "poles", "roads", "pavements", "trees", "signs", "Fence"]
    merged += ["cars", "pedestrians", "bicyclists"]
    assert set(fine.level_names(1)) == set(merged)
    nodes = [fine.index_of(name) for name in merged]  # in the order of the 11
    for level in (1, 2):
        groups = fine.node_to_level[level + 1][nodes]
        of_coarse = coarse.leaf_to_level[level]
        assert np.array_equal(groups[:, None] == groups, of_coarse[:, None] == of_coarse)


def test_keys_beside_the_preset_win_each_as_a_whole(write):
    config = load_config(write("  preset: camvid\n  ignore: 11\n  colors: {sky: [1, 2, 3]}\n"))
    assert config.classes.ignore == 11
    assert config.classes.colors == {"sky": [1, 2, 3]}
    assert list(config.classes.labels.values()) == CAMVID["labels"]
    flat = load_config(write("  preset: camvid\n  tree:\n"))
    assert len(Hierarchy.from_config(flat.classes).levels) == 1
    by_set = load_config(write("  labels: [a, b]\n"), ["classes={preset: lip}", "classes.ignore=99"])
    assert (len(by_set.classes.labels), by_set.classes.ignore) == (20, 99)
    section = {"labels": ["a"], "preset": None}
    assert expand_preset(section) is section


def test_an_unknown_preset_is_reported_with_all_other_faults(write):
    path = write("  preset: cityscape\n  ignore: -1\nhead: {type: asp}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3, lines
    assert lines[0].startswith(f"{path}, line 5: classes.preset: unknown preset 'cityscape'. Did you mean 'city")
    assert lines[0].endswith(f"Known: {', '.join(sorted(PUBLISHED))}.")
    assert "line 6: classes.ignore" in lines[1]
    assert "line 7: head.type" in lines[2]


@pytest.mark.parametrize("name", ["[camvid]", "3", "../presets/camvid", "''"])
def test_a_value_that_is_not_a_name_is_an_unknown_preset(write, name):
    with pytest.raises(ConfigError, match="classes.preset: unknown preset"):
        load_config(write(f"  preset: {name}\n"))


def test_a_fault_beside_a_preset_names_the_key_and_a_typo_its_neighbor(write):
    with pytest.raises(ConfigError, match=r"line 5: classes\.ignore: 3 is also the mask value of 'road'"):
        load_config(write("  {preset: camvid, ignore: 3}\n"))
    with pytest.raises(ConfigError, match=r"classes\.presett: unknown key\. Did you mean 'classes\.preset'\?"):
        load_config(write("  {presett: camvid, labels: [a]}\n"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_resolved_config_needs_no_preset_and_loads_to_the_same_tree(write, tmp_path, name):
    config = load_config(write(f"  preset: {name}\n"))
    text = config.to_yaml()
    assert "preset" not in yaml.safe_load(text)["classes"]
    elsewhere = tmp_path / "elsewhere/config.yaml"
    elsewhere.parent.mkdir()
    elsewhere.write_text(text)
    again = load_config(elsewhere)
    assert again == config
    assert hierarchies_agree(Hierarchy.from_config(again.classes), Hierarchy.from_config({"preset": name}))


def test_a_run_with_a_preset_whose_values_have_gaps_trains_resumes_and_is_measured(tmp_path, run):
    rng = np.random.default_rng(0)
    values = np.array([0, 21, 31, 30], dtype=np.uint8)  # Animal, Sky, Wall and the ignored Void
    for split, count in (("train", 4), ("val", 2)):
        for kind in ("images", "masks"):
            (tmp_path / split / kind).mkdir(parents=True)
        for i in range(count):
            mask = values[rng.permutation(4)].repeat(12)[:, None].repeat(64, axis=1)
            image = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / split / "images" / f"{i}.png")
            Image.fromarray(mask).save(tmp_path / split / "masks" / f"{i}.png")
    path = tmp_path / "cfg.yaml"
    path.write_text(
        SECTIONS + "  {preset: camvid-32}\ntransform: {size: [32, 32]}\n"
        "training: {device: cpu, epochs: 1, batch_size: 2, workers: 0, precision: fp32}\n"
    )
    words = [word for override in TINY for word in ("--set", override)]
    code, _, err = run("train", path, *words)
    assert code == 0, err
    code, _, err = run("train", path, *words, "--set", "training.epochs=2", "--resume")
    assert code == 0, err
    folder = tmp_path / "runs/cfg"
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["event"] for record in records].count("validation") == 2

    code, out, err = run("eval", folder, "--json")
    assert code == 0, err
    levels = json.loads(out)["levels"]
    assert [len(level["classes"]) for level in levels] == [31, 11, 6, 2]
    pixels = {row["name"]: row["pixels"] for row in levels[0]["classes"] if row["pixels"]}
    assert pixels == dict.fromkeys(("Animal", "Sky", "Wall"), 2 * 12 * 64)


def test_presets_are_found_away_from_the_checkout_and_without_torch(tmp_path):
    code = (
        "import sys; from seghiero_core.hierarchy.presets import preset_names;"
        "from seghiero_core.config import load_config;"
        "print(*preset_names()); print(load_config('cfg.yaml', ['classes={preset: ade20k}']).classes.ignore);"
        "assert 'torch' not in sys.modules"
    )
    (tmp_path / "cfg.yaml").write_text(SECTIONS + "  {preset: camvid}\n")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [" ".join(sorted(PUBLISHED)), "0"]
