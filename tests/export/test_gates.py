"""A file whose answers are wrong is not written."""

from __future__ import annotations

import contextlib
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from seghiero_core import load
from seghiero_core.checkpoint import read_checkpoint
from seghiero_core.config.loading import load_config
from seghiero_core.errors import CheckFailed, DataError
from seghiero_core.export import int8, single_file
from seghiero_core.export.gates import _check_gate as check_gate
from seghiero_core.export.gates import _check_int8 as check_int8
from seghiero_core.export.options import ExportOptions
from seghiero_core.export.parity import Parity
from seghiero_core.export.single_file import export_checkpoint
from seghiero_core.model.trained import load_trained
from support.onnx_graphs import add_to_classifier_bias
from support.tiny import TINY, save_untrained


@pytest.mark.parametrize(("by", "flags"), [(0.01, []), (0.5, ["--fp16"]), (float("nan"), [])])
def test_a_wrong_graph_is_not_written(run_export, spoil_export, tmp_path, by, flags):
    spoil_export(by)
    code, out, err = run_export(*flags)
    assert code == 5 and out == "" and "parity failed" in err and "allowed" in err
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_keeps_the_old_file(run_export, spoil_export, exported, tmp_path):
    shutil.copy(exported, tmp_path / "out.onnx")
    spoil_export(1.0)
    assert run_export()[0] == 5
    assert (tmp_path / "out.onnx").read_bytes() == exported.read_bytes() and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("error", "logit", "agreement", "passes"),
    [
        (1.9e-4, 42.7, 1.0, True),  # measured on a trained ResNet-101 with aspp
        (5e-3, 42.7, 1.0, False),
        (1.9e-4, 0.5, 1.0, False),  # never stricter than 1e-4, and no laxer for small logits
        (0.9e-4, 0.5, 0.9999, True),
        (0.9e-4, 0.5, 0.9998, False),
        (1.9e-4, 42.7, 0.9998, False),
        (math.inf, 42.7, 1.0, False),
    ],
)
def test_the_error_may_grow_with_the_logits(error, logit, agreement, passes):
    parity = Parity(error, logit, {"leaf": agreement, "level1": 1.0})
    with contextlib.nullcontext() if passes else pytest.raises(CheckFailed, match="fp32 parity failed"):
        check_gate(parity, "fp32")


def test_a_network_with_large_logits(tiny_run, tmp_path, monkeypatch):
    def load_scaled(*arguments):
        trained = load_trained(*arguments)
        with torch.no_grad():
            trained.model.head.classifier.weight.mul_(1000)
        return trained

    monkeypatch.setattr(single_file, "load_trained", load_scaled)
    row = export_checkpoint(tiny_run / "best", tmp_path / "a.onnx", ExportOptions())
    assert row["max_abs_error"] > 1e-4 and row["max_abs_logit"] > 100 and row["argmax_agreement"] >= 0.9999


@pytest.mark.parametrize("value", [255, 9])
def test_8_bit_of_masks_without_a_leaf(starter_folder, network, tmp_path, value):
    """All masks ignored, or labeled with an inner node only: even random logits would lose no leaf mIoU."""
    shutil.copytree(starter_folder / "data", tmp_path / "data")
    shutil.copy(starter_folder / "cfg.yaml", tmp_path / "cfg.yaml")
    labels = {**load_config(tmp_path / "cfg.yaml").classes.labels, 9: "shape"}
    config = save_untrained(tmp_path / "cfg.yaml", [*TINY, f"classes.labels={labels}"])
    for mask in (tmp_path / "data" / "val" / "masks").iterdir():
        Image.fromarray(np.full_like(np.asarray(Image.open(mask)), value)).save(mask)
    model, rng = network(), np.random.default_rng(0)

    def runner(images):
        return {"logits": rng.normal(size=(len(images), 9, *images.shape[2:])).astype(np.float32)}

    with pytest.raises(DataError, match=r"--int8 .* none of the \d+ validation masks has a pixel labeled with a leaf"):
        check_int8(runner, model, read_checkpoint(config.run_dir / "best"), "uint8")


def test_8_bit_of_a_network_that_never_predicts_the_labels(starter_folder, network, tmp_path):
    """Its mIoU is 0, and no file could lose any."""
    shutil.copytree(starter_folder / "data", tmp_path / "data")
    shutil.copy(starter_folder / "cfg.yaml", tmp_path / "cfg.yaml")
    config = save_untrained(tmp_path / "cfg.yaml", TINY)
    for mask in (tmp_path / "data" / "val" / "masks").iterdir():
        Image.fromarray(np.zeros_like(np.asarray(Image.open(mask)))).save(mask)
    model = network()
    add_to_sky = torch.zeros(1, 9, 1, 1)
    add_to_sky[:, 0] = -1e6
    plain, model.forward = model.forward, lambda image: (plain(image)[0] + add_to_sky,)

    def runner(images):
        return {"logits": model(torch.from_numpy(images))[0].numpy()}

    with pytest.raises(DataError, match=r"--int8 .* the network itself reaches 0\.00 points on the \d+ validation"):
        check_int8(runner, model, read_checkpoint(config.run_dir / "best"), "uint8")


def test_8_bit_that_loses_too_much_miou(starter_folder, tmp_path, monkeypatch):
    """The network's own masks as labels: its mIoU is 1, and that of an 8-bit file with a wrong weight far lower."""
    folder = tmp_path / "data"
    shutil.copytree(starter_folder / "data", folder)
    shutil.copy(starter_folder / "cfg.yaml", tmp_path / "cfg.yaml")
    run = save_untrained(tmp_path / "cfg.yaml", TINY).run_dir
    predictor = load(run, device="cpu")
    for image in (folder / "val" / "images").iterdir():
        mask = predictor(image).ids["leaf"]
        Image.fromarray(mask.astype(np.uint8)).save(folder / "val" / "masks" / f"{image.stem}.png")
    plain = int8.to_int8
    monkeypatch.setattr(int8, "to_int8", lambda model, images: add_to_classifier_bias(plain(model, images), 10))
    with pytest.raises(CheckFailed, match=r"leaf mIoU drops from 100\.00 to"):
        export_checkpoint(run / "best", tmp_path / "a.onnx", ExportOptions(precision="int8"))
    assert not (tmp_path / "a.onnx").exists()
