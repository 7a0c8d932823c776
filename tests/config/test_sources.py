"""`dataset.sources`: what an entry leaves out, every fault with its line, and the config of a run moved elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from seghiero_core.config.loading import load_config, override_config
from seghiero_core.errors import ConfigError, UsageError

GOOD = """dataset:
  root: data
  train: train
  val: {images: frames, masks: labels}
  mask_suffix: _gt
  sources:
    - {name: city, root: city}
    - name: highway
      root: /roads
      val: null
      labels: {0: road, 3: [car, sky], 4: moving, 5: moving}
      ignore: 7
      mask_suffix: ''
      weight: 2
classes:
  labels: [sky, road, car, bus]
  tree: {sky: , road: , moving: [car, bus]}
"""


@pytest.fixture
def write(tmp_path):
    def write_config(text: str = GOOD) -> Path:
        (tmp_path / "cfg.yaml").write_text(text)
        return tmp_path / "cfg.yaml"

    return write_config


def test_what_a_source_leaves_out_comes_from_the_data_set_relative_to_its_own_root(write, tmp_path):
    config = load_config(write())
    city, highway = config.dataset.sources
    data = tmp_path / "data"
    assert (city.root, city.train.masks, city.val.images) == (
        data / "city",
        data / "city/train/masks",
        data / "city/frames",
    )
    assert (city.mask_suffix, city.labels, city.ignore, city.weight) == ("_gt", None, None, 1)
    assert (highway.root, highway.train.images, highway.val) == (Path("/roads"), Path("/roads/train/images"), None)
    assert (highway.mask_suffix, highway.ignore, highway.weight) == ("", 7, 2)
    assert config.dataset.train is None and config.dataset.parts == (city, highway)
    assert load_config(write(), ["dataset.sources=null"]).dataset.parts[0].train.images == data / "train/images"


def test_the_tree_knows_the_values_of_every_source(write):
    hierarchy = load_config(write()).hierarchy
    assert hierarchy.sets == ((0, 2),) and [each.section for each in hierarchy.sources] == [
        "dataset.sources.0",
        "dataset.sources.1",
    ]
    assert hierarchy.of_source(None) is hierarchy
    assert dict(hierarchy.of_source(0).values) == dict(hierarchy.values) == {0: 0, 1: 1, 2: 2, 3: 3}
    moving, either = hierarchy.index_of("moving"), len(hierarchy)
    assert hierarchy.of_source(1).to_target([[0, 3, 4, 5, 7]]).tolist() == [[1, either, moving, moving, -1]]
    assert (hierarchy.of_source(1).ignore, hierarchy.ignore) == (7, 255)


def test_a_config_without_sources_is_as_it_was(write):
    text = GOOD[: GOOD.index("  sources:")] + GOOD[GOOD.index("classes:") :]
    config = load_config(write(text))
    assert config.dataset.sources is None and config.dataset.parts == (config.dataset,)
    assert config.hierarchy.sources == () and config.hierarchy.section == "classes"
    assert yaml.safe_load(config.to_yaml())["dataset"]["sources"] is None


def test_the_config_of_a_run_loads_to_an_equal_one_and_moves(write, tmp_path, monkeypatch):
    config = load_config(write())
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "config.yaml").write_text(config.to_yaml())
    assert load_config(elsewhere / "config.yaml") == config
    assert list(yaml.safe_load(config.to_yaml())["dataset"]["sources"][1])[0] == "name"

    monkeypatch.chdir(elsewhere)
    assert override_config(config, []) == config
    city, highway = override_config(config, ["dataset.root=new"]).dataset.sources
    assert (city.root, city.val.images) == (elsewhere / "new/city", elsewhere / "new/city/frames")
    assert highway == config.dataset.sources[1]  # not below the old root
    changed = ["dataset.sources.1.root=moved", "dataset.sources.1.weight=3", "dataset.sources.0.val=other"]
    city, highway = override_config(config, changed).dataset.sources
    assert (highway.train.images, highway.weight) == (elsewhere / "moved/train/images", 3)
    assert (city.val.masks, city.train) == (elsewhere / "other/masks", config.dataset.sources[0].train)
    (one,) = override_config(config, ["dataset.sources=[{name: one, root: x, train: a, val: b}]"]).dataset.sources
    assert one.train.images == elsewhere / "x/a/images"
    (_, two) = override_config(config, ["dataset.sources.1={name: two, train: a}"]).dataset.sources
    assert (two.root, two.train.images) == (elsewhere, elsewhere / "a/images")


@pytest.mark.parametrize(
    ("override", "error", "text"),
    [
        ("dataset.sources.2.root=x", UsageError, "'2' is not the position of an item: 0 to 1."),
        ("dataset.sources.city.root=x", UsageError, "'city' is not the position of an item"),
        ("dataset.sources.1.labels.0=raod", ConfigError, "dataset.sources.1.labels.0: expected mask values from 0"),
        ("dataset.val=x", ConfigError, "dataset.val: each of dataset.sources has its own; set dataset.sources.N.val"),
    ],
)
def test_a_wrong_override_is_named(write, override, error, text):
    config = load_config(write())
    with pytest.raises(error) as caught:
        override_config(config, [override])
    assert str(caught.value).startswith(f"--set {override}") and text in str(caught.value)


NO_SOURCES = GOOD[: GOOD.index("  sources:")] + "  sources: SOURCES\n" + GOOD[GOOD.index("classes:") :]


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("0: road", "0: raod", 11, "sources.1.labels.0: 'raod' is missing from classes.tree. Did you mean 'road'?"),
        ("[car, sky]", "[car, sy]", 11, "sources.1.labels.3.1: 'sy' is missing from classes.tree. Did you mean 'sky'?"),
        ("name: highway", "name: city", 8, "sources.1.name: 'city' is also the name of dataset.sources.0; give each"),
        ("name: highway", "name: ''", 8, "sources.1.name: expected a name of printable characters, other than"),
        ("name: highway", "name: all", 8, "sources.1.name: expected a name of printable characters, other than 'all'"),
        ("name: highway", 'name: "a\\nb"', 8, "sources.1.name: expected a name of printable characters, other than"),
        ("{name: city, root", "{root", 7, "sources.0.name: this key is required."),
        ("weight", "wieght", 14, "sources.1.wieght: unknown key. Did you mean 'dataset.sources.1.weight'?"),
        ("weight: 2", "weight: 0", 14, "sources.1.weight: expected a number above 0, found 0."),
        ("weight: 2", "weight: 5000", 14, "sources.1.weight: expected a number of at most 1000, found 5000."),
        ("weight: 2", "weight: 2\n      train: null\n      test: a", 14, "sources.1.weight: this source has no"),
        ("weight: 2", "train: null", 8, "sources.1: has no images: add train, val or test."),
        (
            "{0: road, 3: [car, sky], 4: moving, 5: moving}",
            "road",
            11,
            "sources.1.labels: expected a list of names",
        ),
        ("{0: road, 3: [car, sky], 4: moving, 5: moving}", "{x: road}", 11, "sources.1.labels.x: expected mask values"),
        ("ignore: 7", "ignore: 3", 12, "sources.1.ignore: 3 is also the mask value of 'car or sky'; choose one"),
        ("ignore: 7", "ignore: -1", 12, "sources.1.ignore: expected a whole number from 0, found -1."),
        ("{name: city, root: city}", "{name: city, labels: [sky], ignore: 0}", 7, "sources.0.ignore: 0 is also the"),
        ("root: /roads", "train: {images: a}", 9, "sources.1.train.masks: this key is required."),
        ("mask_suffix: ''", "mask_suffix: 3", 13, "sources.1.mask_suffix: expected a string, found 3."),
        ("mask_suffix: _gt", "mask_suffix: 3", 5, "mask_suffix: expected a string, found 3."),
    ],
)
def test_one_fault_has_one_message_with_its_line(write, old, new, line, message):
    assert GOOD.count(old) == 1
    path = write(GOOD.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert len(str(caught.value).splitlines()) == 1, str(caught.value)
    assert str(caught.value).startswith(f"{path}, line {line}: dataset.{message}")


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ("[]", "sources: expected a list of sources, such as [{name: city, root: city}], found []."),
        ("city", "sources: expected a list of sources, such as [{name: city, root: city}], found 'city'."),
        ("3", "sources: expected a list of sources, such as [{name: city, root: city}], found 3."),
        (
            "{city: {root: a, val: b}}",
            "sources: expected a list, found a mapping; write - {name: city, root: ..., ",
        ),
        ("{city: }", "sources: expected a list, found a mapping; write - {name: city, root: FOLDER} for each source."),
        ("[city, {name: b}]", "sources.0: expected a mapping, found 'city'; write {name: city, root: FOLDER}."),
        ("[{name: a}, [b]]", "sources.1: expected a mapping, found ['b']; write {name: NAME, root: FOLDER}."),
    ],
)
def test_what_is_not_a_list_of_sources(write, sources, message):
    path = write(NO_SOURCES.replace("SOURCES", sources))
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 and message in lines[0] and lines[0].startswith(f"{path}, line 6: ")


def test_a_split_that_no_source_has(write):
    text = GOOD.replace("  train: train\n", "").replace("val: null", "test: a")
    with pytest.raises(ConfigError, match=r"line 1: dataset.train: no source has this split; set it here, or in"):
        load_config(write(text.replace("      weight: 2\n", "")))


def test_sources_may_have_different_splits(write):
    config = load_config(write(GOOD.replace("weight: 2", "train: null\n      test: a")))
    assert config.dataset.sources[1].train is None and config.dataset.sources[1].test.masks == Path("/roads/a/masks")
    load_config(write(GOOD.replace("root: city}", "root: city, train: a}")))


def test_a_fault_of_the_classes_is_not_blamed_on_the_sources_that_inherit_them(write):
    with pytest.raises(ConfigError) as caught:
        load_config(write(GOOD.replace("labels: [sky, road, car, bus]", "labels: [sky, sky, car, bus]")))
    assert "line 16: classes.labels.1: 'sky' is also" in str(caught.value) and "sources" not in str(caught.value)


def test_a_split_that_every_source_overrides_is_refused(write):
    text = GOOD.replace("root: city}", "root: city, train: a}").replace("weight: 2", "train: b")
    with pytest.raises(ConfigError, match=r"line 3: dataset.train: each of dataset.sources has its own; set dataset"):
        load_config(write(text))


def test_the_labels_of_a_source_are_checked_beside_other_faults(write):
    text = GOOD.replace("4: moving", "4: movin").replace("weight: 2", "weight: 0") + "training: {epochs: 0}\n"
    with pytest.raises(ConfigError) as caught:
        load_config(write(text))
    keys = [line.split(": ")[1] for line in str(caught.value).splitlines()]
    assert keys == ["dataset.sources.1.weight", "training.epochs", "dataset.sources.1.labels.4"]


def test_classes_labels_have_all_leaves_and_without_a_tree_all_names(write):
    text = GOOD.replace("labels: [sky, road, car, bus]", "labels: [sky, road, car]").replace("4: moving", "4: bus")
    with pytest.raises(ConfigError, match=r"line 17: classes.tree.moving.1: 'bus' is a label of a source only; add it"):
        load_config(write(text))
    text = GOOD.replace("  tree: {sky: , road: , moving: [car, bus]}\n", "").replace("4: moving, 5: moving", "4: tram")
    with pytest.raises(
        ConfigError, match=r"line 11: dataset.sources.1.labels.4: 'tram' is missing from classes.labels"
    ):
        load_config(write(text))
