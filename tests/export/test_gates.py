"""A file whose answers are wrong is not written."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from seghiero_core import load
from seghiero_core.errors import CheckFailed
from seghiero_core.export import int8
from seghiero_core.export.options import ExportOptions
from seghiero_core.export.single_file import export_checkpoint
from support.onnx_graphs import add_to_classifier_bias
from support.tiny import TINY, save_untrained


@pytest.mark.parametrize(("by", "flags"), [(2e-4, []), (0.5, ["--fp16"]), (float("nan"), [])])
def test_a_wrong_graph_is_not_written(run_export, spoil_export, tmp_path, by, flags):
    spoil_export(by)
    code, out, err = run_export(*flags)
    assert code == 5 and out == "" and "parity failed" in err and "allowed" in err
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_keeps_the_old_file(run_export, spoil_export, tmp_path):
    (tmp_path / "out.onnx").write_text("old")
    spoil_export(1.0)
    assert run_export()[0] == 5
    assert (tmp_path / "out.onnx").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


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
