"""The YAML file: defaults, overrides, and every fault with its line, its key and the nearest word."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from seghiero_core.config import suggestions
from seghiero_core.config.loading import load_config, override_config
from seghiero_core.config.schema import TrainingConfig
from seghiero_core.errors import ConfigError, UsageError
from support.processes import ENVIRONMENT

GOOD = """
dataset:
  root: data
  train: {images: train/images, masks: train/masks}
  val: {images: val/images, masks: val/masks}
classes:
  labels: [sky, road, car]
  tree: {static: [sky, road], car: }
"""


@pytest.fixture
def write(tmp_path):
    def write_config(text):
        path = tmp_path / "cfg.yaml"
        path.write_text(text) if isinstance(text, str) else path.write_bytes(text)
        return path

    return write_config


def faults(path, overrides=()):
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def test_only_dataset_and_labels_are_required(write, tmp_path):
    config = load_config(write(GOOD))
    assert config.backbone.type == "resnet"
    assert config.head.type == "aspp"
    assert config.dataset.train.images == tmp_path / "data/train/images"
    assert config.run_dir == tmp_path / "runs/cfg"


def test_the_resolved_config_loads_to_an_equal_one_elsewhere(write, tmp_path):
    config = load_config(write(GOOD + "backbone: {type: resnet, depth: 18, output_stride: 16}\n"))
    elsewhere = tmp_path / "deep/below"
    elsewhere.mkdir(parents=True)
    (elsewhere / "config.yaml").write_text(config.to_yaml())
    assert load_config(elsewhere / "config.yaml") == config


def test_set_overrides_in_yaml_and_replaces_a_mapping_whole(write):
    path = write(GOOD + "backbone: {type: resnet, depth: 18}\n")
    config = load_config(path, ["training.lr=1e-2", "transform.size=[32, 64]", "backbone={type: convnext}"])
    assert config.training.lr == 0.01
    assert config.transform.size == (32, 64)
    assert config.backbone.model_dump() == {"type": "convnext", "pretrained": False}


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("epochs=3", "--set training.epochs=3"),
        ("train.epochs=3", "--set training.epochs=3"),
        ("batch-size=4", "--set training.batch_size=4"),
        ("learning_rate=0.1", "--set training.lr=0.1"),
        ("depth=18", "--set backbone.depth=18"),
        ("type=x", "--set dataset.type=x or --set backbone.type=x or --set head.type=x"),
    ],
)
def test_an_override_without_its_section_names_the_whole_key(write, override, meant):
    with pytest.raises(UsageError) as caught:
        load_config(write(GOOD), [override])
    name = override.partition("=")[0]
    assert str(caught.value) == f"--set {override}: unknown key '{name}'. Did you mean {meant}?"


def test_folders_that_override_a_config_start_at_the_current_folder(write, tmp_path, monkeypatch):
    config = load_config(write(GOOD))
    monkeypatch.chdir(tmp_path.parent)
    dataset = override_config(config, ["dataset.val.images=one/images", "dataset.test=two"]).dataset
    assert dataset.val.images == tmp_path.parent / "one/images"
    assert dataset.val.masks == tmp_path / "data/val/masks"
    assert dataset.test.masks == tmp_path.parent / "two/masks"
    dataset = override_config(config, ["dataset.val=three", "dataset.root=new"]).dataset
    assert dataset.train.images == tmp_path.parent / "new/train/images"
    assert dataset.val.images == tmp_path.parent / "three/images"


def test_an_override_of_an_unknown_section_is_not_blamed_on_the_file(write):
    assert faults(write(GOOD), ["a.b=1"]).startswith("--set a.b=1: a: unknown key. Known: dataset,")


def test_the_words_of_other_tools_mean_keys_that_exist():
    assert set(suggestions._MEANINGS) <= set(suggestions._all_keys())
    assert not set(suggestions._OTHER_WORDS) & {key.rpartition(".")[2] for key in suggestions._all_keys()}


def test_without_validation_images_the_command_that_divides_them_is_named(write):
    text = faults(write("dataset: {train: {images: a, masks: b}}\nclasses: {labels: [sky, road]}\n"))
    assert text.endswith(
        "dataset.val: this key is required. `seghiero data split` divides the images of dataset.train."
    )
    text = faults(write("dataset: {type: shards, train: a.tar}\nclasses: {labels: [sky, road]}\n"))
    assert text.endswith("dataset.val: this key is required.")


@pytest.mark.parametrize("override", ["lr", "=3", "training.=3", "training.lr.x=3"])
def test_a_malformed_override_is_named(write, override):
    with pytest.raises(UsageError, match="--set"):
        load_config(write(GOOD + "training: {lr: 0.1}\n"), [override])


def test_all_faults_come_together_with_line_key_and_nearest_word(write):
    text = faults(
        write(
            GOOD.replace("tree: {static: [sky, road], car: }", "tree: {static: [sky, raod], car: }")
            + "backbone: {type: resnet, dpeth: 50, output_stride: 12}\n"
            "head: {type: asp}\n"
            "trainin: {lr: 3}\n"
            "training: {lr: fast, epochs: -1}\n"
        ),
        ["transform.size=3"],
    ).splitlines()
    expected = [
        ("line 7", "classes.labels.1: 'road' is missing from classes.tree. Did you mean 'raod'?"),
        ("line 8", "'raod' is neither a label nor a group with children. Did you mean 'road'?"),
        ("line 9", "backbone.dpeth: unknown key for resnet. Did you mean 'backbone.depth'?"),
        ("line 9", "backbone.output_stride: expected 8, 16 or 32, found 12"),
        ("line 10", "unknown head 'asp'. Did you mean 'aspp'?"),
        ("line 11", "trainin: unknown key. Did you mean 'training'?"),
        ("line 12", "training.lr: expected a number, found 'fast'"),
        ("line 12", "training.epochs: expected a whole number from 1, found -1"),
        ("--set transform.size=3", "transform.size: expected two numbers: [height, width], found 3"),
    ]
    for where, what in expected:
        assert any(what in line and where in line for line in text), (where, what, text)
    assert len(text) == len(expected)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("backbone: {type: resnt}", "Did you mean 'resnet'?"),
        ("backbone: {type: resnet, depth: 51}", "resnet has no depth '51'"),
        ("backbone: {type: segformer, variant: mit-b9}", "segformer has no variant 'mit-b9'"),
        (
            "backbone: {type: segformer, output_stride: 16}",
            "unknown key for segformer. It belongs to convnext, resnet, timm: remove it",
        ),
        ("backbone: {type: convnext, depth: 50}", "or replace the whole section (backbone={type: convnext})"),
        ("training: {lr: 0.1, lr: 0.2}", "duplicate key 'lr', already on line 9; remove one of them."),
        ("transform: {size: 96}", "transform.size: expected two numbers: [height, width], found 96."),
        ("transform: {scale: 1.0}", "transform.scale: expected two numbers: [smallest, largest], found 1.0."),
        ("loss: cross_entropy", "loss: expected a mapping, found 'cross_entropy'. Write `loss: {preset: flat}`."),
        ("loss: cross_entropy", "Presets: marginal, marginal_dice, flat, hssn, logicseg, wasserstein."),
        ("loss: CrossEntropyLoss", "Write `loss: {preset: flat}`."),
        ("loss: hssn", "Write `loss: {preset: hssn}`."),
        ("loss: dice", "Write `loss: {terms: {dice: 1}}`."),
        ("loss: [dice]", "Write `loss: {terms: {dice: 1}}`."),
        ("loss: nothing_known", "losses for `terms`: leaf_cross_entropy,"),
        ("loss: {dice: 1}", "loss.dice: unknown key. Write `loss: {terms: {dice: 1}}`."),
        ("loss: {preset: cross_entropy}", "unknown preset 'cross_entropy'. Write `loss: {preset: flat}`."),
        ("backbone: resnet50", "Write `backbone: {type: resnet, depth: 50}`."),
        ("backbone: mit-b0", "Write `backbone: {type: segformer, variant: mit-b0}`."),
        ("head: aspp", "Write `head: {type: aspp}`."),
        ("training: lr:0.1", "Write 'key: value', with a space after the colon."),
        ("training: {epochs: yes}", "training.epochs: expected a number, found true."),
        ("transform: {flip: on}", "transform.flip: expected a number, found true."),
        ("training: {lr: .inf}", "training.lr: expected a finite number, found inf."),
        ("training: {ema: .nan}", "training.ema: expected a finite number, found nan."),
        ("training: {seed: 4294967296}", "training.seed: expected a number of at most 4294967295, found 4294967296."),
        ("training: {trackers: wandb}", "training.trackers: expected a list, found 'wandb'; write [wandb]."),
        ("training: {3: 4}", "training.3: unknown key. Known: device, epochs,"),
        ("training: {epoch: 3}", "training.epoch: unknown key. Did you mean 'training.epochs'?"),
        ("training: {learning_rate: 3}", "training.learning_rate: unknown key. Did you mean 'training.lr'?"),
        ("training: {size: 3}", "training.size: unknown key. Did you mean 'transform.size'?"),
        ("epochs: 3", "epochs: unknown key. Did you mean 'training.epochs'?"),
        ("type: x", "type: unknown key. Did you mean 'dataset.type' or 'backbone.type' or 'head.type'?"),
        ("backbone: {dropout: 0.1}", "backbone.dropout: unknown key for resnet. Did you mean 'head.dropout'?"),
        ("training: [1, 2]", "training: expected a mapping, found [1, 2]"),
        ("transform: {scale: [2, 1]}", "[smallest, largest]"),
        ("loss: {terms: {dcie: 1}}", "Did you mean 'dice'?"),
        ("loss: {preset: marginl}", "Did you mean 'marginal'?"),
        ("backbone: {type: resnet, drop_path: 2}", "backbone.drop_path: expected a number below 1, found 2"),
        ("head: {type: aspp, dropout: -0.1}", "head.dropout: expected a number of at least 0, found -0.1"),
        ("head: {type: aspp, dilations: [6, 12, 0]}", "head.dilations: expected a whole number from 1, found 0"),
        ("transform: {size: [64]}", "transform.size: expected two numbers: [height, width], found [64]."),
        ("transform: {flip: 2}", "transform.flip: expected a number of at most 1, found 2."),
        ("training: {ema: 1}", "training.ema: expected a number below 1, found 1."),
        ("training: {lr: 0}", "training.lr: expected a number above 0, found 0."),
        ("training: {epochs: 2.5}", "training.epochs: expected a whole number, found 2.5."),
        ("training: {compile: maybe}", "training.compile: expected true or false, found 'maybe'."),
        ("training: {precision: fp8}", "training.precision: expected 'auto', 'fp32', 'bf16' or 'fp16', found 'fp8'."),
        ("training: {batch_size: 0}", "training.batch_size: expected 'auto' or a whole number from 1, found 0."),
        ("training: {workers: -1}", "training.workers: expected 'auto' or a whole number from 0, found -1."),
        ("init_from: ''", "init_from: expected a string that is not empty, found ''."),
        ("output: {dir: 3}", "output.dir: expected a path, found 3."),
        ("training: {device: gpu}", "training.device: expected auto, cpu, cuda, cuda:N or mps, found 'gpu'"),
        ("training: {monitor: leafs}", "training.monitor: unknown metric 'leafs'. Did you mean 'leaf'?"),
    ],
)
def test_one_fault_is_named(write, section, message):
    assert message in faults(write(GOOD + section + "\n"))


def test_a_section_without_keys_has_its_defaults(write):
    path = write(GOOD + "training:\n  # epochs: 3\nbackbone:\n")
    assert load_config(path).training == TrainingConfig()
    assert load_config(path, ["training.epochs=3"]).training.epochs == 3
    assert load_config(path, ["backbone.type=convnext"]).backbone.type == "convnext"


def test_folders_may_begin_at_the_home_folder(write, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    config = load_config(write(GOOD + "output: {dir: ~/runs}\n"), ["dataset.root=~/data", "dataset.val=~/val"])
    assert config.output.dir == Path("/home/someone/runs") and config.dataset.root == Path("/home/someone/data")
    assert config.dataset.val.images == Path("/home/someone/val/images")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("# nothing\n", "the file is empty"),
        ("just words", "expected sections"),
        ("a: [1, 2", "not valid YAML"),
        ("dataset: !!python/object/apply:os.system ['touch ran']", "is not allowed"),
        ("dataset: !!python/name:os.system ", "could not determine a constructor"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "not a text file"),
        ("? [a, b]\n: c", "a key must be a word"),
        ("a: " + "[" * 300 + "]" * 300, "values than a config has"),
        (
            GOOD.replace("[sky, road, car]", "[sky, road, no]"),
            "YAML reads no and off as false, so write the name in quotes: 'no'",
        ),
        ("training:\n\tlr: 0.1", "line 2: not valid YAML: found a tab; use spaces instead"),
        ("training:\n  lr: 0.1\n epochs: 3", "line 3: not valid YAML: the indentation differs"),
        ("training: {lr: 0.1", "',' or '}' is missing from a mapping"),
        ("training: 'abc", "a quotation mark is missing"),
        ("a: 1\n---\nb: 2", "line 2: not valid YAML: a second document"),
        (GOOD.replace("[sky, road, car]", "{0: sky, 99999: road}"), "mask values from 0 to 65535"),
        (GOOD.replace("[sky, road, car]", "[]"), "expected a list of names"),
    ],
)
def test_a_file_that_is_not_a_config_is_refused(write, tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    assert message in faults(write(text))
    assert not (tmp_path / "ran").exists()


def test_an_alias_bomb_ends_in_a_message(write):
    bomb = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    bomb += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    assert "remove its aliases" in faults(write("\n".join(bomb)))


def test_a_misspelt_path_names_what_is_there(write, tmp_path):
    path = write(GOOD)
    assert f"no such file. Did you mean '{path}'?" in faults(tmp_path / "cgf.yaml")
    assert f"no such file. Did you mean '{path}'?" in faults(tmp_path / "cfg.yml")
    assert f"{tmp_path} contains cfg.yaml." in faults(tmp_path / "experiment.yaml")
    assert f"The folder {tmp_path / 'elsewhere'} doesn't exist." in faults(tmp_path / "elsewhere" / "cfg.yaml")
    assert "is a folder; give the YAML file in it: cfg.yaml." in faults(tmp_path)


def test_colors_are_three_numbers_or_hexadecimal(write):
    path = write(GOOD + "  colors: {sky: '#4682b4', road: '#FA0', car: [1, 2, 3], static: [0, 0, 255]}\n")
    expected = {"sky": [70, 130, 180], "road": [255, 170, 0], "car": [1, 2, 3], "static": [0, 0, 255]}
    config = load_config(path)
    assert config.classes.colors == expected == yaml.safe_load(config.to_yaml())["classes"]["colors"]
    hierarchy = config.hierarchy
    assert {name: hierarchy.colors[hierarchy.index_of(name)].tolist() for name in expected} == expected


def test_a_missing_file_names_the_command_that_writes_one(tmp_path):
    assert "seghiero init" in faults(tmp_path / "none.yaml")


def test_defaults_survive_a_yaml_round_trip(write):
    config = load_config(write(GOOD))
    assert yaml.safe_load(config.to_yaml())["training"]["lr"] == config.training.lr


def test_loading_a_config_does_not_import_torch(write):
    code = f"import sys; from seghiero_core.config import load_config; load_config({str(write(GOOD))!r}); "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT).returncode == 0
