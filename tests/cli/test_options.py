"""--decode, --confidence and --background of `eval`, `predict` and `export`, against decoding by hand."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from seghiero_core import load
from seghiero_core.decode_modes import MODES, undecided_id
from seghiero_core.errors import UsageError
from seghiero_core.evaluation.checkpoint import evaluate_checkpoint
from seghiero_core.export.metadata import read_metadata
from seghiero_core.export.options import ExportOptions
from seghiero_core.export.runner import make_session, read_onnx
from seghiero_core.export.single_file import export_checkpoint
from seghiero_core.hierarchy.tree import Hierarchy
from support.tiny import TINY, save_untrained

LEVELS = ("leaf", "level1", "level2")
THRESHOLD = 0.6


def stored(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def backed_off(prediction, threshold: float) -> dict[str, np.ndarray]:
    """-1 at the levels finer than the first, from the leaves up, whose score passes; pixel by pixel."""
    ids = {level: prediction.ids[level].astype(int) for level in LEVELS}
    for place in np.ndindex(ids["leaf"].shape):
        for level in LEVELS:
            if prediction.confidence[level][place] >= np.float32(threshold):
                break
            ids[level][place] = -1
    return ids


@pytest.fixture(scope="module")
def image(starter_folder):
    return min((starter_folder / "data" / "val" / "images").iterdir())


@pytest.fixture(scope="module")
def backing_off(tiny_run, tmp_path_factory):
    """An ONNX file with a threshold."""
    path = tmp_path_factory.mktemp("exported") / "a.onnx"
    export_checkpoint(tiny_run / "best", path, ExportOptions(confidence=THRESHOLD))
    return path


def test_masks_hold_the_ignore_value_where_the_prediction_backed_off(run, tiny_run, image, tmp_path):
    code, out, err = run(
        "predict", tiny_run, image, "--out", tmp_path, "--confidence", THRESHOLD, "--device=cpu", "--json"
    )
    assert code == 0, err
    predictor = load(tiny_run, device="cpu")
    expected, hierarchy = backed_off(predictor(image), THRESHOLD), predictor.hierarchy
    assert hierarchy.ignore == 255
    row, colors = json.loads(out), np.zeros((*expected["leaf"].shape, 3), np.uint8)
    for number in (2, 1, 0):
        level = LEVELS[number]
        left = expected[level] < 0
        assert np.array_equal(stored(tmp_path / f"{image.stem}.{level}.png"), np.where(left, 255, expected[level]))
        assert row["undecided"][level] == pytest.approx(left.mean())
        assert sum(row["shares"][level].values()) == pytest.approx(1 - left.mean())
        colors[~left] = hierarchy.colors[list(hierarchy.levels[number].nodes)][expected[level][~left]]
    assert 0 < row["undecided"]["level2"] < row["undecided"]["leaf"] < 1, "or it shows nothing"
    mixed = stored(image) * 0.5 + colors * 0.5
    assert np.abs(stored(tmp_path / f"{image.stem}.overlay.png") - mixed).max() <= 1


def test_a_file_backs_off_as_the_checkpoint_does(backing_off, tiny_run, image):
    decoding = read_metadata(read_onnx(backing_off), backing_off)["decoding"]
    assert (decoding["confidence"], decoding["undecided"]) == (THRESHOLD, 255)
    by_checkpoint = load(tiny_run, device="cpu", confidence=THRESHOLD)(image)
    by_file = load(backing_off, device="cpu")(image)
    session = make_session(backing_off.read_bytes())
    outputs = session.run([f"ids_{level}" for level in LEVELS], {"image": stored(image).transpose(2, 0, 1)[None]})
    for level, ids in zip(LEVELS, outputs, strict=True):
        assert (by_checkpoint.ids[level] == 255).any()
        assert (by_file.ids[level] == by_checkpoint.ids[level]).mean() > 0.999
        assert (ids[0] == by_file.ids[level]).mean() > 0.999
    whole = load(backing_off, device="cpu", confidence=0)
    assert whole.undecided is None
    assert (whole(image).ids["leaf"] == load(tiny_run, device="cpu")(image).ids["leaf"]).mean() > 0.999


@pytest.mark.parametrize(
    ("classes", "ignore", "expected"),
    [(4, 255, 255), (4, 4, 4), (4, 0, 255), (4, 999, 255), (255, 255, 255), (256, 255, 65535), (300, 999, 999)],
)
def test_the_undecided_value_is_no_class(classes, ignore, expected):
    first = 1 if ignore == 0 else 1000
    labels = {first + i: f"c{i}" for i in range(classes)}
    assert undecided_id(Hierarchy.from_config({"labels": labels, "ignore": ignore})) == expected


def test_many_classes_are_written_in_16_bits(tmp_path):
    from seghiero_core.predict.files import predict_files
    from seghiero_core.predict.jobs import find_jobs
    from seghiero_core.predict.predictor import Predictor
    from seghiero_core.predict.writer import PredictionOutputs

    labels = [f"c{i}" for i in range(256)]
    hierarchy = Hierarchy.from_config({"labels": labels, "tree": {"a": labels[:100], "b": labels[100:]}, "ignore": 256})
    logits = torch.full((1, 256, 8, 9), -9.0)
    logits[:, 255, :4] = 9  # a certain leaf above, two leaves of one group below
    logits[:, 254:, 4:] = 9
    Image.new("RGB", (9, 8)).save(tmp_path / "a.png")
    predictor = Predictor(hierarchy, forward=lambda images: logits, confidence=0.9)
    outputs = PredictionOutputs(predictor.hierarchy, predictor.undecided)
    (result,) = predict_files(predictor, find_jobs([tmp_path / "a.png"], tmp_path / "out"), outputs)
    assert result.error is None
    leaf, group = (stored(tmp_path / "out" / f"a.{level}.png") for level in ("leaf", "level1"))
    assert (leaf[:4] == 255).all() and (leaf[4:] == 256).all() and (group == 1).all()


def test_eval_measures_the_threshold_and_shows_others(run, tiny_run):
    code, out, err = run("eval", tiny_run, "--device", "cpu", "--confidence", THRESHOLD, "--json")
    assert code == 0, err
    backed, plain = json.loads(out), evaluate_checkpoint(tiny_run / "best", device="cpu").document
    assert backed["confidence"] == THRESHOLD and "confidence" not in plain
    assert backed["back_off_curve"] == plain["back_off_curve"] and len(plain["back_off_curve"]) == 100
    assert backed["levels"][0]["pixel_accuracy"] < plain["levels"][0]["pixel_accuracy"]
    assert backed["consistency"] == plain["consistency"] == 1.0
    first, row = plain["back_off_curve"][0], plain["back_off_curve"][60]
    assert (first["coverage"], first["specificity"]) == (1.0, 1.0)
    assert 0 < row["coverage"] < 1 and 0 < row["specificity"] < 1
    code, out, _ = run("eval", tiny_run, "--device", "cpu", "--confidence", THRESHOLD)
    lines = [line.split() for line in out.partition("back-off")[2].splitlines()]
    shown = {words[0]: words[1:] for words in lines if words and words[0][0].isdigit()}
    assert shown["0.60"] == [f"{100 * row[name]:.1f}" for name in ("coverage", "specificity", "accuracy")]


def test_eval_leaves_the_background_out_of_a_second_mean(run, tiny_run):
    code, out, err = run("eval", tiny_run, "--device", "cpu", "--background", "sky", "--json")
    assert code == 0, err
    for level in json.loads(out)["levels"]:
        kept = [entry["iou"] for entry in level["classes"] if entry["name"] != "sky" and entry["iou"] is not None]
        assert level["miou_without_background"] == pytest.approx(np.mean(kept))
    code, out, err = run("eval", tiny_run, "--device", "cpu", "--background", "skye")
    assert (code, out) == (2, "") and "unknown class 'skye'. Did you mean 'sky'?" in err


def test_a_run_in_half_precision_is_evaluated_on_the_cpu(run, starter_folder):
    overrides = [*TINY, "output.name=half", "training.precision=fp16"]
    folder = save_untrained(starter_folder / "cfg.yaml", overrides).run_dir
    code, out, err = run("eval", folder, "--device", "cpu", "--json")
    assert code == 0, err
    assert json.loads(out)["pixels"] > 0


@pytest.mark.parametrize("command", ["eval", "predict", "export"])
@pytest.mark.parametrize("value", ["1.5", "-0.1", "nan"])
def test_an_invalid_threshold_is_a_usage_error(run, tiny_run, image, tmp_path, command, value):
    words = {"eval": [], "predict": [image, "--out", tmp_path / "o"], "export": ["--out", tmp_path / "o"]}[command]
    code, out, err = run(command, tiny_run, *words, f"--confidence={value}")
    assert (code, out) == (2, "") and "must be a number from 0 to 1" in err and not (tmp_path / "o").exists()


@pytest.mark.parametrize("command", ["eval", "predict", "export"])
def test_help_lists_the_decodings_without_torch(command):
    code = (
        f"import sys, runpy; sys.argv = ['seghiero', '{command}', '--help']\n"
        "try: runpy.run_module('seghiero_cli', run_name='__main__')\n"
        "except SystemExit as done: assert not done.code, done.code\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(mode in done.stdout for mode in MODES) and "README" not in done.stdout


def test_an_unknown_threshold_is_refused_by_the_api(tiny_run):
    with pytest.raises(UsageError, match="from 0 to 1"):
        load(tiny_run, device="cpu", confidence=2)
