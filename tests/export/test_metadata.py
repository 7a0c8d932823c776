"""The metadata of an ONNX file is enough to interpret its outputs."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
from PIL import Image

from seghiero_core import load
from seghiero_core.checkpoint import read_checkpoint
from seghiero_core.export.metadata import read_metadata, set_metadata
from seghiero_core.hierarchy.tree import Hierarchy
from support.masks import LEVELS


def test_the_metadata_describes_the_classes(exported, tiny_run):
    metadata = read_metadata(onnx.load(exported), exported)
    config = read_checkpoint(tiny_run / "best").config
    hierarchy = Hierarchy.from_config(config.classes)
    assert {int(value): name for value, name in metadata["labels"].items()} == config.classes.labels
    assert metadata["ignore"] == 255 and metadata["seghiero_version"] and len(metadata["config_sha256"]) == 64
    assert metadata["colors"]["sky"] == [135, 206, 235] and set(metadata["colors"]) == set(hierarchy.nodes)
    assert [level["name"] for level in metadata["levels"]] == list(LEVELS)
    for number, level in enumerate(metadata["levels"]):
        assert tuple(level["classes"]) == hierarchy.level_names(number)
    assert metadata["normalization"]["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert metadata["normalization"]["std"] == pytest.approx([0.229, 0.224, 0.225])
    again = load(exported).hierarchy
    assert again.nodes == hierarchy.nodes and np.array_equal(again.leaf_to_level, hierarchy.leaf_to_level)
    assert np.array_equal(again.colors, hierarchy.colors) and again.values == hierarchy.values


def test_damaged_files_are_refused(exported, run, tmp_path):
    lacking = copy.deepcopy(onnx.load(exported))
    set_metadata(lacking, {"labels": {}})
    (tmp_path / "lacking.onnx").write_bytes(lacking.SerializeToString())
    (tmp_path / "half.onnx").write_bytes(exported.read_bytes()[: exported.stat().st_size // 2])
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    for name, expected_code, words in (("lacking", 2, "not written by"), ("half", 4, "can't be read as ONNX")):
        code, _, err = run(
            "predict", tmp_path / f"{name}.onnx", tmp_path / "a.png", "--device=cpu", "--out", tmp_path / "out"
        )
        assert code == expected_code and words in err
    assert not (tmp_path / "out").exists()
