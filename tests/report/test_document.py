"""The document of a report: its numbers are those of the predicted masks, and it says what a run folder says."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from seghiero_core.checkpoint import read_checkpoint
from seghiero_core.config.loading import load_config
from seghiero_core.errors import UsageError
from seghiero_core.evaluation.checkpoint import evaluate_checkpoint
from seghiero_core.evaluation.files import keep_in_run, kept_measurement
from seghiero_core.predict.loading import load
from seghiero_core.report.document import check_same_tree, checkpoint_document, fit_pictures, without_pictures
from seghiero_core.report.page import read_page
from seghiero_core.report.run_facts import run_curves, run_status
from seghiero_core.training.interrupts import Interrupted
from seghiero_core.training.loop import train
from support.runs import StopAt
from support.tiny import TINY, save_untrained

TREE = "classes.tree={ground: [sky, grass], round: [disc, ring]}"


def document_of(folder, measured=None):
    checkpoint = read_checkpoint(folder)
    return checkpoint_document([(checkpoint, measured or kept_measurement(checkpoint.folder))])


def masks(run, config, confidence=None):
    """The true and the predicted mask of each validation image at each level, -1 for none, by the command's way."""
    predictor, hierarchy = load(run, device="cpu", confidence=confidence), config.hierarchy
    for file in sorted(config.dataset.val.images.iterdir()):
        target = hierarchy.to_target(np.asarray(Image.open(config.dataset.val.masks / file.name)))
        prediction = predictor(file)
        ids = [each.astype(int) for each in prediction.ids.values()]
        ids = [np.where(each == prediction.undecided, -1, each) for each in ids]
        truth = [np.where(target < 0, -1, hierarchy.node_to_level[level][target]) for level in range(len(ids))]
        yield file.name, truth, ids


def iou(truth, ids, number):
    union = ((truth == number) | ((ids == number) & (truth >= 0))).sum()
    return ((truth == number) & (ids == number)).sum() / union if union else None


def mean(values):
    known = [value for value in values if value is not None]
    return pytest.approx(np.mean(known)) if known else None


@pytest.mark.parametrize("confidence", [None, 0.7])
def test_every_number_equals_a_count_of_the_predicted_masks(small, confidence):
    config = save_untrained(small, TINY)
    run = config.run_dir
    measured = evaluate_checkpoint(run / "best", confidence=confidence).measurement
    (found,) = document_of(run / "best", measured)["runs"]
    names, truths, predictions = zip(*masks(run, config, confidence), strict=True)
    assert [image["name"] for image in found["images"]] == list(names)
    undecided = 0
    for number, level in enumerate(found["evaluation"]["levels"]):
        truth, ids = (np.stack([image[number] for image in images]) for images in (truths, predictions))
        counted = truth >= 0
        pairs, counts = np.unique([truth[counted], ids[counted]], axis=1, return_counts=True)
        assert level["confusion"] == [
            [*pair, count] for pair, count in zip(pairs.T.tolist(), counts.tolist(), strict=True)
        ]
        assert level["pixel_accuracy"] == pytest.approx((truth == ids)[counted].mean())
        assert level["miou"] == mean([iou(truth, ids, i) for i in range(len(level["classes"]))])
        for i, each in enumerate(level["classes"]):
            assert (each["iou"], each["pixels"]) == (mean([iou(truth, ids, i)]), (truth == i).sum())
        cells = {}
        for i, image in enumerate(found["images"]):
            assert image["miou"][number] == mean([iou(truth[i], ids[i], c) for c in range(len(level["classes"]))])
            assert image["pixel_accuracy"][number] == pytest.approx((truth[i] == ids[i])[counted[i]].mean())
            wrong = counted[i] & (truth[i] != ids[i])
            pairs, counts = np.unique([truth[i][wrong], ids[i][wrong]], axis=1, return_counts=True)
            for (a, b), count in zip(pairs.T.tolist(), counts.tolist(), strict=True):
                cells.setdefault(f"{a},{b}", []).append([i, count])
                assert [a, b, count] in image["confusion"][number]
        assert found["cells"][number] == {k: sorted(v, key=lambda pair: -pair[1]) for k, v in cells.items()}
        undecided += (ids < 0).sum()
    assert bool(undecided) == (confidence is not None)


def test_calibration_and_back_off_are_those_of_the_confidences(small):
    config = save_untrained(small, TINY)
    (found,) = document_of(config.run_dir / "best", evaluate_checkpoint(config.run_dir / "best").measurement)["runs"]
    predictor = load(config.run_dir, device="cpu")
    for number, (level, name) in enumerate(zip(found["evaluation"]["levels"], ("leaf", "level1"), strict=True)):
        confidence, right = [], []
        for image, truth, ids in masks(config.run_dir, config):
            counted = truth[number] >= 0
            confidence.append(predictor(config.dataset.val.images / image).confidence[name][counted])
            right.append((truth[number] == ids[number])[counted])
        confidence, right = np.concatenate(confidence), np.concatenate(right)
        bins = np.ceil(confidence * 15).astype(int) - 1
        for i, each in enumerate(level["calibration"]):
            inside = bins == i
            assert each["pixels"] == inside.sum()
            assert each["confidence"] == (pytest.approx(confidence[inside].mean(), abs=1e-6) if inside.any() else None)
            assert each["accuracy"] == (pytest.approx(right[inside].mean()) if inside.any() else None)
    assert len(found["evaluation"]["back_off_curve"]) == 100


def test_a_validation_keeps_what_an_evaluation_of_its_checkpoint_measures(small):
    config = load_config(small, [*TINY, "training.epochs=3"])
    train(config, command="seghiero train it")
    for link in ("best", "last"):
        folder = config.run_dir / link
        kept, measured = kept_measurement(folder), evaluate_checkpoint(folder).measurement
        for key in ("images", "codes", "cells"):
            assert kept[key] == json.loads(json.dumps(measured[key]))
        assert measured["evaluation"].items() >= {k: v for k, v in kept["evaluation"].items() if k != "levels"}.items()
    document = document_of(config.run_dir / "best")
    (run,) = document["runs"]
    assert (run["name"], run["status"], run["step"]) == (
        "small",
        "finished",
        read_checkpoint(config.run_dir / "best").step,
    )
    assert run["command"] == "seghiero train it" and run["environment"]["device"].startswith("cpu")
    assert ["val: ignored pixels", "18"] in run["data"] and ["train: images", "4"] in run["data"]
    assert [point["step"] for point in run["curves"]["steps"]] == [1, 2, 3, 4, 5, 6]
    assert [point["epoch"] for point in run["curves"]["validations"]] == [1, 2, 3]
    assert document["tree"]["classes"] == [[0, 1, 2, 3], [4, 5]]
    assert [node["parent"] for node in document["tree"]["nodes"]] == [4, 4, 5, 5, None, None]
    page = (config.run_dir / "report.html").read_text()
    assert '"status":"finished"' in page and '"step":6' in page
    assert len(run["images"]) == 2 and "picture" in run["images"][0]
    assert "picture" not in without_pictures(document)["runs"][0]["images"][0]


def test_a_run_that_stopped_early_is_finished(small):
    config = load_config(small, [*TINY, "training.epochs=9", "training.early_stopping=1", "training.lr=1e-9"])
    train(config)
    records = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["epoch"] < 9 and not records[-1]["best"]
    assert run_status(config.run_dir, config) == "finished"
    assert '"status":"finished"' in (config.run_dir / "report.html").read_text()
    patient = load_config(small, [*TINY, "training.epochs=9", "training.early_stopping=2"])
    assert run_status(config.run_dir, patient) == "interrupted"


def test_a_run_that_was_stopped_goes_on_or_was_copied_says_so(small, tmp_path):
    config = load_config(small, [*TINY, "training.epochs=4"])
    with pytest.raises(Interrupted):
        train(config, notify=StopAt(5))
    run = config.run_dir
    assert run_status(run, config) == "interrupted"

    def page():
        return read_page((run / "report.html").read_text())["runs"][0]

    shown = page()
    assert (shown["status"], shown["step"], shown["curves"]["steps"][-1]["step"]) == ("interrupted", 4, 5)
    with FileLock(run.with_name(".small.lock")):
        assert run_status(run, config) == "training"
    document = document_of(run / "last", evaluate_checkpoint(run / "last").measurement)  # step 5 has no validation
    assert kept_measurement(run / "last") is None and document["runs"][0]["step"] == 5
    shutil.copytree(run / "best", tmp_path / "alone")
    (copied,) = document_of(tmp_path / "alone")["runs"]
    assert (copied["status"], copied["name"], copied["command"]) == ("copied checkpoint", "alone", None)
    assert copied["curves"] == {"steps": [], "validations": []} and copied["images"]
    statuses = []
    train(config, resume=True, notify=lambda _: statuses.append(page()["status"]))
    assert statuses[-1] == "finished" and {*statuses[statuses.index("training") :]} == {"training", "finished"}


def test_curves_skip_what_a_kill_tore_and_are_thinned(tmp_path):
    rows = [
        {"event": "step", "step": i, "epoch": 1, "loss": float(i), "lr": 0.1, "terms": {}, "images": 6, "seconds": 2.0}
        for i in range(1, 1201)
    ]
    rows[0]["loss"] = None
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"event": "st')
    steps = run_curves(tmp_path)["steps"]
    assert len(steps) == 500 and (steps[0]["step"], steps[0]["loss"], steps[-1]["step"]) == (1, None, 1200)
    assert all(step["images_per_second"] == 3 for step in steps)
    assert all(step["loss"] == step["step"] for step in steps[1:])


def test_an_evaluation_is_kept_for_the_weights_that_it_measured(small):
    run = save_untrained(small, TINY).run_dir
    assert kept_measurement(run / "best") is None
    evaluation = evaluate_checkpoint(run / "best")
    keep_in_run(evaluation)
    assert kept_measurement(run / "best") == json.loads(json.dumps(evaluation.measurement))
    assert kept_measurement(run / "best", "train") is None
    shutil.rmtree(run / "checkpoints")
    save_untrained(small, TINY, seed=2)
    assert kept_measurement(run / "best") is None


def test_runs_of_other_classes_are_not_compared(small):
    first = read_checkpoint(save_untrained(small, TINY).run_dir / "best")
    flat = save_untrained(small, [*TINY, "classes.tree={sky: , rest: [grass, disc, ring]}", "output.name=flat"])
    second = read_checkpoint(flat.run_dir / "best")
    check_same_tree(first, first)
    with pytest.raises(UsageError, match=r"only in the first: ground, round; only in the second: rest"):
        check_same_tree(first, second)


def test_numbers_that_are_not_finite_are_unknown(small):
    run = save_untrained(small, TINY).run_dir
    measured = evaluate_checkpoint(run / "best").measurement
    measured["evaluation"]["mean_miou"] = math.nan
    document = document_of(run / "best", measured)
    assert document["runs"][0]["evaluation"]["mean_miou"] is None
    json.dumps(document, allow_nan=False)


@pytest.mark.parametrize(("limit", "shown"), [(1000, "abcde"), (140, "ae"), (210, "ace"), (69, ""), (0, "")])
def test_pictures_that_fit_are_those_of_the_worst_the_best_and_the_median_image(limit, shown):
    names = "dbeca"
    images = [
        {
            "name": name,
            "miou": ["abcde".index(name) / 5, None],
            "picture": "x" * 10,
            "truth": "x" * 10,
            "prediction": "x" * 10,
        }
        for name in names
    ]
    fitted = fit_pictures({"runs": [{"images": images}]}, limit)
    found = fitted["runs"][0]["images"]
    assert [image["name"] for image in found] == list(names)
    assert {image["name"] for image in found if "truth" in image} == set(shown)
