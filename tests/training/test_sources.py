"""Several data sets in one run, each with mask values of its own: trained, resumed, validated and measured."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from seghiero_core import load
from seghiero_core.checkpoint import read_checkpoint
from seghiero_core.config.loading import load_config
from seghiero_core.evaluation.checkpoint import evaluate_checkpoint
from seghiero_core.model import measuring
from seghiero_core.training import validation
from seghiero_core.training.interrupts import Interrupted
from seghiero_core.training.loop import train
from support.processes import ENVIRONMENT, SUPPORT
from support.runs import StopAt, assert_same, records, weights
from support.tiny import TINY, save_untrained

SOURCES = """
dataset:
  root: data
  train: train
  val: val
  sources:
    - {name: city, root: city, test: val}
    - name: highway
      root: highway
      labels: {1: ground, 2: [sky, disc], 3: ring}
      ignore: 0
      weight: 2
    - {name: park, root: park, val: null}
"""
LEAVES = {"sky": "ground", "grass": "ground", "disc": "round", "ring": "round"}
VALUES = {
    "city": ({0: "sky", 1: "grass", 2: "disc", 3: "ring"}, 255),
    "highway": ({1: "ground", 2: None, 3: "ring"}, 0),  # None: sky or disc, which share no class
    "park": ({0: "sky", 1: "grass", 2: "disc", 3: "ring"}, 255),
}
IMAGES = {"city": {"train": 3, "val": 3}, "highway": {"train": 2, "val": 2}, "park": {"train": 2}}


@pytest.fixture
def sources(small):
    """A config of three sources: `city` with the labels of the classes, `highway` with others, `park` without val."""
    rng = np.random.default_rng(5)
    for name, splits in IMAGES.items():
        labels, ignore = VALUES[name]
        for split, count in splits.items():
            for kind in ("images", "masks"):
                (small.parent / "data" / name / split / kind).mkdir(parents=True)
            for i in range(count):
                mask = rng.choice([*labels], (6, 8)).astype(np.uint8).repeat(8, axis=0).repeat(8, axis=1)
                mask[:3, :3] = ignore
                image = (60 * mask[..., None] + rng.integers(0, 40, (48, 64, 3))).astype(np.uint8)
                folder = small.parent / "data" / name / split
                Image.fromarray(image).save(folder / "images" / f"{i}.png")
                Image.fromarray(mask).save(folder / "masks" / f"{i}.png")
    small.write_text(re.sub(r"\ndataset: .*\n", SOURCES, small.read_text()))
    return small


def counted(folder, name, predictor):
    """mIoU of the leaves and of level 1, and the number of pixels, of the validation images of a source."""
    labels, ignore = VALUES[name]
    pairs = {"leaf": [], "level1": []}
    for mask_file in sorted((folder / name / "val/masks").iterdir()):
        mask = np.array(Image.open(mask_file))
        prediction = predictor(mask_file.parents[1] / "images" / mask_file.name)
        for level, names in (("leaf", [*LEAVES]), ("level1", ["ground", "round"])):
            for value, label in labels.items():
                truth = LEAVES.get(label, label) if level == "level1" else label
                if truth in names and value != ignore:
                    pairs[level] += [(names.index(truth), p) for p in prediction.ids[level][mask == value].tolist()]
    means = []
    for level, classes in (("leaf", 4), ("level1", 2)):
        truth, predicted = np.array(pairs[level]).T
        both = [((truth == c) & (predicted == c)).sum() for c in range(classes)]
        either = [((truth == c) | (predicted == c)).sum() for c in range(classes)]
        means.append(np.mean([b / e for b, e in zip(both, either, strict=True) if e]))
    return [*means, len(pairs["level1"])]


def measured(metrics):
    return [*(level["miou"] for level in metrics["levels"]), metrics["pixels"]]


def without_confusions(document):
    for level in document["levels"]:
        level.pop("worst_confusions", None)
    return json.loads(json.dumps(document))


def test_a_run_measures_each_source_as_eval_and_as_a_count_of_its_masks(sources, run):
    options = [*TINY, "training.batch_size=2", "training.val_batch_size=2", "training.epochs=1"]
    config = load_config(sources, options)
    events = []
    record = train(config, notify=events.append)
    data = [(event["split"], event["source"], event["images"]) for event in events if event["event"] == "data"]
    assert data == [
        *(("train", name, splits["train"]) for name, splits in IMAGES.items()),
        *(("val", name, IMAGES[name]["val"]) for name in ("city", "highway")),
    ]
    assert events[-1]["step"] == 4  # 3 + 2 * 2 + 2 images are drawn
    assert list(record["sources"]) == ["city", "highway"]
    assert records(config.run_dir)[-1]["sources"] == json.loads(json.dumps(record["sources"]))
    saved = read_checkpoint(config.run_dir / "best").metrics
    predictor = load(config.run_dir, device="cpu")
    for name in ("city", "highway"):
        assert measured(record["sources"][name]) == pytest.approx(counted(sources.parent / "data", name, predictor))
    assert record["metrics"]["pixels"] == sum(metrics["pixels"] for metrics in record["sources"].values())

    code, out, err = run("eval", config.run_dir, "--json")
    document = json.loads(out)
    assert code == 0 and "measured on 3 images of" in err and ", 2 images of" in err
    assert document["images"] == 5 and document["sources"]["highway"]["images"] == 2
    assert document["sources"]["city"]["data"]["masks"] == str(sources.parent / "data/city/val/masks")
    for name, metrics in saved["sources"].items():
        assert {key: document["sources"][name][key] for key in metrics} == metrics
    assert {key: without_confusions(document)[key] for key in record["metrics"]} == json.loads(
        json.dumps(record["metrics"])
    )
    assert json.loads((config.run_dir / "eval/val.json").read_text())["sources"] == document["sources"]

    code, out, _ = run("eval", config.run_dir, "--split", "test", "--decode", "top_down")
    table = out[out.index("mIoU % by source") :].splitlines()
    assert code == 0 and [line.split()[0] for line in table[1:4]] == ["source", "city", "all"]
    assert table[2].split()[1:] == table[3].split()[1:]


def test_other_images_are_read_by_the_labels_of_the_classes(sources, run):
    folder = save_untrained(sources, TINY).run_dir
    new = ["--images", sources.parent / "data/city/val/images", "--masks", sources.parent / "data/city/val/masks"]
    code, out, err = run("eval", folder, *new, "--json")
    assert code == 0 and "these masks are read by classes.labels" in err
    assert "sources" not in json.loads(out) and json.loads(out)["pixels"] == 3 * (48 * 64 - 9)
    new[3] = sources.parent / "data/highway/val/masks"
    new[1] = sources.parent / "data/highway/val/images"
    code, out, err = run("eval", folder, *new, "--json")
    assert code == 0 and json.loads(out)["levels"][0]["classes"][0]["pixels"] == 2 * 9  # their ignore value is sky's


def test_a_suffix_that_every_source_has_is_refused(sources, run):
    folder = save_untrained(sources, TINY).run_dir
    code, _, err = run("eval", folder, "--set", "dataset.mask_suffix=_x")
    assert code == 2 and "each of dataset.sources has its own; set dataset.sources.N.mask_suffix." in err


def test_a_resumed_run_is_exact(sources):
    options = [*TINY, "training.batch_size=1", "training.epochs=2", "training.ema=0.5"]
    whole, parts = (load_config(sources, [*options, f"output.name={name}"]) for name in ("whole", "parts"))
    train(whole)
    for step in (5, 13):
        with pytest.raises(Interrupted):
            train(parts, resume=True, notify=StopAt(step))
    train(parts, resume=True)
    assert records(whole.run_dir) == records(parts.run_dir)
    assert_same(weights(whole.run_dir), weights(parts.run_dir))


def test_images_of_several_sources_in_one_batch_and_in_tiles(sources, monkeypatch):
    folder = save_untrained(sources, TINY).run_dir / "best"
    alone = evaluate_checkpoint(folder, batch_size=1).document["sources"]
    together = evaluate_checkpoint(folder, batch_size=5).document["sources"]
    for name in alone:
        assert measured(together[name]) == pytest.approx(measured(alone[name]))
    count_images, sizes = measuring.count_images, []

    def limited(forward, images, *arguments, **options):
        sizes.append(len(images))
        found = count_images(forward, images, *arguments, **options)
        if len(images) > 2:  # after its images were counted
            raise MemoryError
        return found

    monkeypatch.setattr("seghiero_core.evaluation.evaluate.count_images", limited)
    halved = evaluate_checkpoint(folder, batch_size=5).document["sources"]
    assert sizes == [5, 2, 2, 1]
    for name in alone:
        assert measured(halved[name]) == pytest.approx(measured(alone[name]))


def test_two_processes_measure_each_source_as_one_does(sources):
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words += [SUPPORT / "ranks.py", sources, *TINY, "training.batch_size=1", "training.epochs=1"]
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("\n  city: mIoU leaf ") == done.stderr.count("\n  highway: mIoU leaf ") == 1
    last = sources.parent / "runs/small/last"
    saved = read_checkpoint(last).metrics["sources"]
    document = without_confusions(evaluate_checkpoint(last).document)
    for name, metrics in saved.items():
        assert {key: document["sources"][name][key] for key in metrics} == metrics  # to the last digit
    assert sum(metrics["pixels"] for metrics in saved.values()) == document["pixels"]


def test_validation_png_names_the_sources(sources, monkeypatch):
    drawn, draw = [], validation.prediction_grid

    def grid(*arguments, captions):
        drawn.append(captions)
        return draw(*arguments, captions=captions)

    monkeypatch.setattr(validation, "prediction_grid", grid)
    train(load_config(sources, [*TINY, "training.epochs=1"]))
    assert drawn == [["city: 0.png", "city: 1.png", "city: 2.png", "highway: 0.png"]]


def test_nothing_labeled_names_the_masks_of_every_source(sources):
    for name in ("city", "highway"):
        for mask in (sources.parent / "data" / name / "val/masks").iterdir():
            Image.new("L", (64, 48), VALUES[name][1]).save(mask)
    events = []
    train(load_config(sources, [*TINY, "training.epochs=1"]), notify=events.append)
    (text,) = [e["text"] for e in events if e["event"] == "warning" and "can't be measured" in e["text"]]
    assert all(str(sources.parent / "data" / name / "val/masks") in text for name in ("city", "highway"))


def test_a_resume_names_the_keys_of_a_source_that_changed(sources, run):
    train(load_config(sources, [*TINY, "training.epochs=1"]))
    options = [*TINY, "training.epochs=1", "dataset.sources.1.ignore=9"]
    code, _, err = run("train", sources, "--resume", *[word for each in options for word in ("--set", each)])
    assert code == 3 and "are not labels: 0" in err
    options[-1] = "dataset.sources.2.labels={0: sky, 1: ground, 2: disc, 3: ring}"
    code, _, err = run("train", sources, "--resume", *[word for each in options for word in ("--set", each)])
    assert code == 0 and "\n  dataset.sources.2.labels: None in the run, {0: 'sky', 1: 'ground', 2: 'di" in err
    assert err.count("in the run") == 1
    options[-1] = "dataset.sources.1.weight=9"
    code, _, err = run("train", sources, "--resume", *[word for each in options for word in ("--set", each)])
    assert code == 2 and "Keep the training images, the weights of their sources and the product of" in err
