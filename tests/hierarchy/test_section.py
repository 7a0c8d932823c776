"""Every form of a `classes` section gives the same tree, and every fault is one message."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from seghiero_core.config.loading import load_config
from seghiero_core.errors import ConfigError, UsageError
from seghiero_core.hierarchy.presets import read_preset
from seghiero_core.hierarchy.tree import Hierarchy
from support.trees import CAMVID, hierarchies_agree

CLASSES = {**CAMVID, "ignore": 11, "colors": {"sky": [1, 2, 3]}}
WHOLE = {
    "dataset": {split: {"images": f"{split}/images", "masks": f"{split}/masks"} for split in ("train", "val")},
    "classes": CLASSES,
    "backbone": {"type": "resnet", "depth": 18},
}


def written(path: Path, document: object) -> Path:
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture
def forms(tmp_path) -> dict[str, object]:
    config = load_config(written(tmp_path / "whole.yaml", WHOLE))
    return {
        "path of a whole config": tmp_path / "whole.yaml",
        "path as text": str(tmp_path / "whole.yaml"),
        "path of a section": written(tmp_path / "section.yaml", CLASSES),
        "path of a section under its key": written(tmp_path / "classes.yaml", {"classes": CLASSES}),
        "loaded config": config,
        "whole config as a dict": WHOLE,
        "resolved config as a dict": config.model_dump(),
        "section of a loaded config": config.classes,
        "section as a dict": CLASSES,
        "section as an object": SimpleNamespace(**CLASSES),
    }


def test_every_form_gives_the_same_tree(forms):
    trees = {name: Hierarchy.from_config(form) for name, form in forms.items()}
    first = trees["section as a dict"]
    assert first.ignore == 11 and first.level_names(2) == ("static", "moving")
    assert [name for name, tree in trees.items() if not hierarchies_agree(tree, first)] == []


def test_a_preset_in_every_form(tmp_path):
    expected = Hierarchy.from_config({key: value for key, value in read_preset("lip").items() if key != "source"})
    for document in ({"preset": "lip"}, {"classes": {"preset": "lip"}}):
        assert hierarchies_agree(Hierarchy.from_config(document), expected)
        assert hierarchies_agree(Hierarchy.from_config(written(tmp_path / "a.yaml", document)), expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no classes found"),
        ("dataset: {root: a}", "no classes found"),
        ("classes:", "no classes found"),
        ("classes: [a, b]", "no classes found"),
        ("[a, b]", "no classes found"),
        ("labels: [a, b\ntree: x", "line 2: not valid YAML"),
        ("labels: !!python/object:os.system [a]", "not valid YAML"),
        ("labels: [a, b]\ntre: {x: [a, b]}", "classes.tre: unknown key. Did you mean 'tree'?"),
        ("preset: camvit", "unknown preset 'camvit'. Did you mean 'camvid'?"),
        ("labels: [a, yes]", "classes.labels: expected names, found True"),
        ("labels: [a, '']", "classes.labels: expected names, found ''"),
        ("labels: sky", "classes.labels: expected a list of names"),
        ("labels: []", "classes.labels: expected a list of names"),
        ("labels: {-1: a}", "classes.labels: expected mask values from 0 to 65535, found -1"),
        ("labels: {65536: a}", "classes.labels: expected mask values from 0 to 65535, found 65536"),
        ("labels: {a: b}", "classes.labels: expected mask values from 0 to 65535, found 'a'"),
        ("labels: [a, b]\ntree: 3", "classes.tree: expected names, found 3"),
        ("labels: [a, b]\ntree: [a, 3]", "classes.tree: expected names, found 3"),
        ("labels: [a, b]\nignore: none", "classes.ignore: expected a mask value from 0 to 65535, found 'none'"),
        ("labels: [a, b]\ncolors: {a: red}", "classes.colors.a: expected three whole numbers"),
    ],
)
def test_a_fault_of_a_file_names_it(tmp_path, text, message):
    path = tmp_path / "classes.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        Hierarchy.from_config(path)
    assert str(caught.value).startswith(str(path)) and message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_all_faults_of_a_file_name_it(tmp_path):
    path = written(tmp_path / "classes.yaml", {"labels": ["a", "b"], "tree": {"x": ["a", "c"]}, "ignore": 0})
    with pytest.raises(ConfigError) as caught:
        Hierarchy.from_config(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3 and all(line.startswith(f"{path}: classes.") for line in lines)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such file"):
        Hierarchy.from_config(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        Hierarchy.from_config(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary\.yaml: not a text file"):
        Hierarchy.from_config(tmp_path / "binary.yaml")


def test_the_name_of_a_preset_is_not_a_path():
    with pytest.raises(ConfigError, match=r"cityscapes: no such file.*pass \{'preset': 'cityscapes'\}"):
        Hierarchy.from_config("cityscapes")


@pytest.mark.parametrize("config", [None, {}, ["a", "b"], 3, {"classes": None}, SimpleNamespace(classes=None)])
def test_what_has_no_classes(config):
    with pytest.raises(ConfigError, match="no classes found"):
        Hierarchy.from_config(config)


def test_an_unknown_preset():
    with pytest.raises(UsageError, match="unknown preset 'ade20'. Did you mean 'ade20k'"):
        Hierarchy.from_config({"preset": "ade20"})
