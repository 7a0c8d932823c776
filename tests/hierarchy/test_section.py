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
        ("labels: !!python/object:os.system [a]", "is not allowed"),
        ("labels: [a, b]\ntre: {x: [a, b]}", "classes.tre: unknown key. Did you mean 'tree'?"),
        ("preset: camvit", "unknown preset 'camvit'. Did you mean 'camvid'?"),
        ("labels: [a, yes]", "line 1: classes.labels.1: expected a name, found true: YAML reads yes and on as true"),
        ("labels: [a, '']", "classes.labels.1: expected a name, found ''"),
        ("labels: sky", "classes.labels: expected a list of names"),
        ("labels: []", "classes.labels: expected a list of names"),
        ("labels: {-1: a}", "classes.labels.-1: expected mask values from 0 to 65535, found -1"),
        ("labels: {65536: a}", "classes.labels.65536: expected mask values from 0 to 65535, found 65536"),
        ("labels: {a: b}", "classes.labels.a: expected mask values from 0 to 65535, found 'a'"),
        ("labels: [a, b]\ntree: 3", "line 2: classes.tree: expected groups, such as {vehicle: [car, bus]}, found 3"),
        (
            "labels: [a, b]\ntree: [a, 3]",
            "classes.tree.1: expected a name, found 3; if it is meant as a name, put it in",
        ),
        ("labels: [a, b]\nignore: none", "classes.ignore: expected a mask value from 0 to 65535, found 'none'"),
        ("labels: [a, b]\ncolors: {a: red}", "classes.colors.a: expected [R, G, B] from 0 to 255 or '#RRGGBB'"),
        ("labels: [a, b]\ncolors:\n  a: #112233", "line 3: classes.colors.a: expected [R, G, B]"),
        ("labels: [a, b]\ncolors: {a: [true, 2, 3]}", "found [True, 2, 3]"),
        ("labels: [a, b]\ncolors: [[1, 2, 3]]", "classes.colors: expected a mapping such as"),
        ("labels: [a, b]\ncolors: {0: [1, 2, 3]}", "expected the name of a class before the color, found 0"),
        ("labels: {sky: 0, road: 1}", "write the value before the name: {0: sky}"),
        ("labels: {'0': sky}", "write it without quotes: 0: sky"),
        (
            "labels: [0, 1]",
            "classes.labels.0: expected a name, found 0; if it is meant as a name, put it in quotes: '0'",
        ),
        ("labels: {static: [sky, road]}", "groups of labels belong in classes.tree"),
        ("labels: [sky, {vehicle: [car, bus]}]", "groups of labels belong in classes.tree"),
        ("labels: [{0: sky}, {1: road}]", "for mask values write one mapping: {0: sky, 1: road}"),
        ("labels: sky, road", "found 'sky, road'; write [sky, road]"),
        ("labels: {0: a, 1: b, 0: c}", "line 1: duplicate key '0', already on line 1"),
        ("labels: [a, b]\ntree:\n  x: [a]\n  x: [b]", "line 4: duplicate key 'x', already on line 3"),
        # trees
        ("labels: [a, b]\ntree: [[a], [b]]", "line 2: classes.tree.0: a group needs a name: write {NAME: [a]} instead"),
        ("labels: [a, b]\ntree:\n  x:\n  - a\n  - - b", "line 5: classes.tree.x.1: a group needs a name"),
        ("labels: [a, b]\ntree: {x: [[a, b]]}", "classes.tree.x.0: a group needs a name: write {NAME: [a, b]}"),
        ("labels: [a, b]\ntree:\n- a\n-\n- b", "line 4: classes.tree.1: item 2 of the list is empty; remove it"),
        ("labels: [a, b]\ntree: [a, {}, b]", "classes.tree.1: item 2 of the list is empty"),
        ("labels: [a, b]\ntree: [a, [], b]", "classes.tree.1: item 2 of the list is empty"),
        ("labels: [a, b]\ntree: {a: , b: , x: []}", "classes.tree.x: the group 'x' is empty; list its labels, or"),
        ("labels: [a, b]\ntree: {a: , b: , x: {}}", "classes.tree.x: the group 'x' is empty"),
        ("labels: [a, b]\ntree: {a: , b: , x: }", "classes.tree.x: 'x' is neither a label nor a group with children"),
        ("labels: [a, b]\ntree: {yes: [a, b]}", "classes.tree.true: expected a name, found true: YAML reads yes"),
        ("labels: [a, b]\ntree: {~: [a, b]}", "classes.tree.null: expected a name, found nothing"),
        ("labels: [a, b]\ntree: {1: [a, b]}", "classes.tree.1: expected a name, found 1"),
        ("labels: [a, b]\ntree: {x: 3, b: }", "classes.tree.x: expected a name, found 3"),
        ("labels: [a, b]\ntree: {x: [a], y: {z: [a, b]}}", "classes.tree.y.z.0: 'a' is already at classes.tree.x.0"),
        ("labels: [a, b]\ntree: {x: {x: [a, b]}}", "classes.tree.x.x: 'x' is already at classes.tree.x;"),
        ("labels: [a, b, x]\ntree: {x: [a, b, x]}", "classes.tree.x.2: 'x' is already at classes.tree.x;"),
        ("labels: [a, b]\ntree: [{name: x, children: [a, b]}]", "a group is written as {x: [a, b]}, without the words"),
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
    assert len(lines) == 3 and all(line.startswith(f"{path}, line ") for line in lines)


def test_many_faults_of_a_kind_are_three_and_a_count(tmp_path):
    path = written(tmp_path / "classes.yaml", {"labels": [f"c{i}" for i in range(9)], "tree": {"x": ["c0"]}})
    with pytest.raises(ConfigError) as caught:
        Hierarchy.from_config(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 4 and lines[-1].endswith(": and 5 more labels that are missing from classes.tree.")


def test_a_label_may_be_a_group_and_a_leaf_may_have_an_empty_list():
    hierarchy = Hierarchy.from_config({"labels": ["a", "b", "x"], "tree": [{"x": ["a"]}, {"b": []}]})
    assert hierarchy.nodes == ("a", "b", "x") and hierarchy.values == {0: 0, 1: 1, 2: 2}


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such file"):
        Hierarchy.from_config(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="is a folder"):
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
