"""Predictions as masks to train on."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from seghiero_core import load
from seghiero_core.data.images import read_mask, to_target
from seghiero_core.hierarchy.tree import IGNORE_INDEX, Hierarchy
from seghiero_core.predict.files import predict_files
from seghiero_core.predict.jobs import Job
from seghiero_core.predict.predictor import Predictor
from seghiero_core.predict.pseudo_labels import PseudoLabels, mask_values, write_classes

CLASSES = {
    "labels": {7: "car", 2: "bus", 0: "sky", 4: "vehicle", 5: ["bus", "sky"]},
    "tree": {"sky": None, "thing": {"vehicle": ["car", "bus"], "person": None}},
    "ignore": 1,
}
CLASSES["labels"][9] = "person"


@pytest.fixture
def pseudo_label(run, images, tiny_run, tmp_path):
    def run_command(*options, confidence=0.6):
        words = [images, "--out", tmp_path / "out", "--confidence", confidence, "--device", "cpu", *options]
        return run("pseudo-label", tiny_run, *words)

    return run_command


def test_every_node_has_a_mask_value():
    hierarchy = Hierarchy.from_config(CLASSES)
    values = dict(zip(hierarchy.nodes, mask_values(hierarchy).tolist(), strict=True))
    assert values == {"sky": 0, "bus": 2, "car": 7, "person": 9, "vehicle": 4, "thing": 3}


def test_a_pixel_has_the_deepest_class_that_is_sure_enough(tmp_path):
    hierarchy = Hierarchy.from_config(CLASSES)
    torch.manual_seed(0)
    logits = torch.randn(1, len(hierarchy.leaves), 9, 11) * 2
    predictor = Predictor(hierarchy, lambda images: logits, mode="top_down", confidence=0.6)
    Image.new("RGB", (11, 9)).save(tmp_path / "a.jpg")
    (result,) = predict_files(predictor, [Job(tmp_path / "a.jpg", tmp_path / "masks" / "a")], PseudoLabels(hierarchy))

    probability = logits.softmax(1)[0].movedim(0, 2).numpy()
    leaf = dict(zip(hierarchy.leaves, np.moveaxis(probability, 2, 0), strict=True))
    vehicle = leaf["car"] + leaf["bus"]
    thing = vehicle + leaf["person"]
    expected = np.full((9, 11), 1)
    for score, value in ((thing, 3), (vehicle, 4), *((leaf[n], v) for n, v in (("sky", 0), ("person", 9)))):
        expected[score >= 0.6] = value
    expected[leaf["car"] >= 0.6], expected[leaf["bus"] >= 0.6] = 7, 2
    mask = np.array(Image.open(tmp_path / "masks" / "a.png"))
    assert np.array_equal(mask, expected) and {1, 3, 4} <= set(np.unique(expected))
    labeled = result.measures["labeled"]
    assert labeled["leaf"] == np.isin(expected, [0, 2, 7, 9]).sum() and labeled["level2"] == (expected != 1).sum()

    again = Hierarchy.from_config(write_classes(tmp_path, hierarchy, {}))
    assert again.nodes[: len(again.leaves)] and set(again.nodes) == set(hierarchy.nodes)
    path = tmp_path / "masks" / "a.png"
    target = to_target(read_mask(path), path, again)
    names = np.array([*again.nodes, "ignored"])[np.where(target == IGNORE_INDEX, len(again), target)]
    of_value = {1: "ignored", 3: "thing", 4: "vehicle", 0: "sky", 9: "person", 7: "car", 2: "bus"}
    assert np.array_equal(names, np.vectorize(of_value.get)(expected))


def test_more_classes_than_8_bits_hold(tmp_path):
    hierarchy = Hierarchy.from_config({"labels": {i: f"c{i}" for i in range(300)}, "ignore": 400})
    logits = torch.zeros(1, 300, 2, 3)
    logits[:, 299, 0] = 20
    predictor = Predictor(hierarchy, lambda images: logits, confidence=0.5)
    Image.new("RGB", (3, 2)).save(tmp_path / "a.jpg")
    list(predict_files(predictor, [Job(tmp_path / "a.jpg", tmp_path / "a")], PseudoLabels(hierarchy)))
    assert np.array_equal(np.array(Image.open(tmp_path / "a.png")), [[299] * 3, [400] * 3])


def test_a_stopped_run_goes_on_and_other_options_are_refused(pseudo_label, tmp_path):
    code, out, _ = pseudo_label("--json")
    document = json.loads(out)
    assert code == 0 and (document["images"], document["skipped"]) == (5, 0)
    labeled = list(document["labeled"].values())
    assert labeled == sorted(labeled) and labeled[0] < labeled[-1] <= 1
    masks = sorted((tmp_path / "out").rglob("*.png"))
    before = [mask.read_bytes() for mask in masks]
    masks[1].unlink()
    code, out, _ = pseudo_label()
    assert code == 0 and "1 mask written, 4 kept from before" in out
    assert [mask.read_bytes() for mask in masks] == before
    code, _, err = pseudo_label(confidence=0.7)
    assert code == 2 and "belongs to masks that were made in another way" in err


def test_the_masks_and_classes_train(pseudo_label, small, run, tiny_run, tmp_path):
    images = tmp_path / "train" / "images"
    code, _, _ = run("pseudo-label", tiny_run, images, "--out", tmp_path / "pseudo", "--confidence", "0.4")
    classes = yaml.safe_load((tmp_path / "pseudo" / "classes.yaml").read_text())["classes"]
    config = yaml.safe_load(small.read_text()) | {"classes": classes}
    config["dataset"]["train"]["masks"] = "pseudo"
    config["dataset"]["val"] = config["dataset"]["train"]
    small.write_text(yaml.safe_dump(config))
    code, out, err = run("data", "check", small)
    assert code == 0, err
    assert load(tiny_run, device="cpu").hierarchy.leaves == Hierarchy.from_config(small).leaves
