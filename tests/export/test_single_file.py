"""`seghiero export --onnx`: a file that gives the network's answers, and what can go wrong while it is written."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from seghiero_core import load
from seghiero_core.decode_modes import MODES
from seghiero_core.export import single_file
from seghiero_core.export.gates import GATES
from seghiero_core.export.graph import output_names
from seghiero_core.export.options import OPSETS, ExportOptions
from seghiero_core.export.runner import make_session
from seghiero_core.export.single_file import export_checkpoint
from seghiero_core.run_files import recorded_files
from support.masks import LEVELS, read_png
from support.processes import ENVIRONMENT, SUPPORT
from support.tiny import TINY, save_untrained


def test_json_and_the_file(run_export, tmp_path):
    code, out, err = run_export("--json")
    row = json.loads(out)
    assert code == 0 and re.fullmatch(r"checkpoint: .*/best \(step-\d+\)\n", err)
    assert row["path"] == str(tmp_path / "out.onnx") and row["opset"] == 20 and row["parity_images"] == "validation"
    assert row["max_abs_error"] <= 1e-4 and row["argmax_agreement"] >= 0.9999 and row["max_abs_logit"] > 0.5
    model = onnx.load(row["path"])
    (image,) = model.graph.input
    assert image.name == "image" and image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    dims = [dim.dim_param or dim.dim_value for dim in image.type.tensor_type.shape.dim]
    assert dims == ["batch", 3, "height", "width"]
    expected = [f"ids_{level}" for level in LEVELS] + [f"confidence_{level}" for level in LEVELS]
    assert [output.name for output in model.graph.output] == expected == row["outputs"]
    assert [path.name for path in tmp_path.iterdir()] == ["out.onnx"]


def test_an_export_in_a_run_is_listed_there(project_folder):
    run = project_folder / "my-project/runs/demo"
    assert recorded_files(run) == [run / "model.onnx"]


def test_any_size_and_batch(exported, network):
    model, session = network(), make_session(exported.read_bytes())
    names = [output.name for output in session.get_outputs()]
    sizes = [(1, 1, 1), (2, 1, 70), (1, 97, 131), (3, 64, 96), (1, 33, 31), (2, 128, 127), (1, 512, 512)]
    for batch, height, width in sizes:
        rng = np.random.default_rng(height)
        images = rng.integers(0, 256, (batch, 3, height, width), dtype=np.uint8)
        expected = dict(zip(output_names(model.hierarchy), model(torch.from_numpy(images)), strict=True))
        for name, found in zip(names, session.run(names, {"image": images}), strict=True):
            assert found.shape == (batch, height, width)
            if name.startswith("ids"):
                assert (found == expected[name].numpy()).mean() > 0.999
            else:
                np.testing.assert_allclose(found, expected[name].numpy(), atol=1e-3)


def test_consumer_predict_and_checkpoint_give_the_same(run, exported, tiny_run, starter_folder, tmp_path):
    """A user's own script, `predict` with the ONNX file, and `predict` with the checkpoint."""
    images = sorted((starter_folder / "data" / "val" / "images").iterdir())[:2]
    for image in images:
        line = [sys.executable, SUPPORT / "onnx_consumer.py", exported, image, tmp_path / "consumer"]
        done = subprocess.run(line, env=ENVIRONMENT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    for name, model in (("onnx", exported), ("checkpoint", tiny_run)):
        code, _, err = run("predict", model, *images, "--out", tmp_path / name, "--device=cpu")
        assert code == 0, err
    for image in images:
        for level in LEVELS:
            name = f"{image.stem}.{level}.png"
            masks = [read_png(tmp_path / by / name) for by in ("consumer", "onnx", "checkpoint")]
            assert len(np.unique(masks[0])) > 1
            assert np.array_equal(masks[0], masks[1])
            assert (masks[0] == masks[2]).mean() > 0.9999
            consumer, own = (Image.open(tmp_path / by / name).convert("RGB") for by in ("consumer", "onnx"))
            assert np.array_equal(np.array(consumer), np.array(own))


def test_float_input_and_logits(run_export, network, tiny_run, tmp_path):
    code, out, _ = run_export("--input", "float32", "--outputs", "logits", "--json")
    assert code == 0 and json.loads(out)["outputs"] == ["logits"]
    session = make_session((tmp_path / "out.onnx").read_bytes())
    description = session.get_modelmeta().description
    assert "N,3,H,W float32" in description and "`logits`, N,9,H,W float32" in description and "ids" not in description
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 50, 61)).astype(np.float32)
    (logits,) = session.run(None, {"image": images})
    expected = network()(torch.from_numpy(images))[0]
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4)
    image = images[0].transpose(1, 2, 0).astype(np.uint8)
    found = load(tmp_path / "out.onnx", device="cpu")(image).ids["leaf"]
    assert (found == load(tiny_run, device="cpu")(image).ids["leaf"]).mean() > 0.999


def test_half_precision(run_export, tmp_path):
    code, out, _ = run_export("--fp16", "--json")
    row = json.loads(out)
    assert code == 0 and row["precision"] == "fp16"
    assert 1e-7 < row["max_abs_error"] <= 1e-2 and row["argmax_agreement"] >= 0.995
    weights = {
        tensor.data_type for tensor in onnx.load(tmp_path / "out.onnx").graph.initializer if len(tensor.dims) == 4
    }
    assert weights == {onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT}, "backbone and head"
    assert load(tmp_path / "out.onnx", device="cpu")(np.zeros((40, 50, 3), np.uint8)).ids["leaf"].shape == (40, 50)


@pytest.mark.parametrize("loss", ["leaf_cross_entropy", "level_cross_entropy", "conditional_cross_entropy", "node_bce"])
def test_every_kind_of_scores_and_decoding(starter_folder, tmp_path, loss):
    """One file per kind of scores, with another decoding each time; then every decoding through `load(mode=)`."""
    overrides = [*TINY, f"output.name={loss}", f"loss={{terms: {{{loss}: 1}}}}"]
    run = save_untrained(starter_folder / "cfg.yaml", overrides).run_dir
    by_checkpoint = load(run, device="cpu")
    modes = [mode for mode in MODES if not (mode == "expected_cost" and by_checkpoint.scores == "sigmoid")]
    mode = {"softmax": "expected_cost", "levels": "per_level", "siblings": "best_path", "sigmoid": "top_down"}
    options = ExportOptions(mode=mode[by_checkpoint.scores])
    row = export_checkpoint(run / "best", tmp_path / "a.onnx", options)
    assert row["argmax_agreement"] >= 0.9999
    image = sorted((starter_folder / "data" / "val" / "images").iterdir())[0]
    assert load(tmp_path / "a.onnx").mode == options.mode
    for mode in modes:
        expected = load(run, device="cpu", mode=mode)(image)
        found = load(tmp_path / "a.onnx", device="cpu", mode=mode)(image)
        for level in LEVELS:
            assert (found.ids[level] == expected.ids[level]).mean() > 0.999


@pytest.mark.parametrize("opset", [OPSETS[0], OPSETS[-1]])
def test_the_first_and_last_opset(run_export, opset):
    code, out, err = run_export("--opset", opset, "--json")
    assert code == 0 and json.loads(out)["opset"] == opset, err


def test_newest_run_is_named(run_export, tiny_run, tmp_path, monkeypatch):
    code, _, err = run_export(checkpoint=tmp_path / "nowhere")
    assert code == 2 and "nowhere: no such run" in err
    monkeypatch.chdir(tmp_path)
    code, _, err = run_export(checkpoint=None)
    assert code == 2 and "no run in" in err and str(tmp_path) in err
    (tmp_path / "runs").mkdir()
    shutil.copytree(tiny_run, tmp_path / "runs" / "tiny", symlinks=True)
    code, out, err = run_export("--json", checkpoint=None)
    assert code == 0 and "using the newest: runs/tiny/best (step-" in err and json.loads(out)["path"]


def test_without_out_it_is_in_the_run(tiny_run):
    options = ExportOptions(precision="int8")
    assert single_file.default_path(tiny_run / "best", ExportOptions()) == tiny_run.resolve() / "model.onnx"
    assert single_file.default_path(tiny_run / "best", options) == tiny_run.resolve() / "model-int8.onnx"


def test_checkpoint_of_another_version_or_damaged(starter_folder, run_export):
    run = save_untrained(starter_folder / "cfg.yaml", [*TINY, "output.name=bad"]).run_dir
    manifest = run / "best" / "manifest.json"
    before = manifest.read_text()
    manifest.write_text(json.dumps(json.loads(before) | {"format": 99, "seghiero_version": "9.9"}))
    code, _, err = run_export(checkpoint=run)
    assert code == 4 and "seghiero 9.9 in format 99" in err
    manifest.write_text(before)
    with (run / "best" / "model.safetensors").open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\xff\xff\xff\xff")
    code, _, err = run_export(checkpoint=run)
    assert code == 4 and "model.safetensors has changed" in err


def test_no_permission_is_known_before_the_work(run_export, tmp_path, monkeypatch):
    """Root may write anywhere, so the refusal is simulated; the second path leads through a file."""

    def refuse(self, *_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "touch", refuse)
    monkeypatch.setattr(single_file, "to_onnx", lambda *_: pytest.fail("the work has begun"))
    code, _, err = run_export()
    assert code == 4 and "permission denied" in err and str(tmp_path) in err
    (tmp_path / "file").write_text("")
    code, _, err = run_export("--out", tmp_path / "file" / "a.onnx")
    assert code == 4 and "file" in err


def test_a_full_disk(run_export, tmp_path, monkeypatch):
    def full(self, data):
        with self.open("wb") as file:
            file.write(data[:1000])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    code, _, err = run_export()
    assert code == 4 and "disk is full" in err and list(tmp_path.iterdir()) == []


def test_a_real_process_is_quiet(starter_folder, tmp_path):
    overrides = ["backbone={type: resnet, depth: 18}", TINY[1], "output.name=quiet"]
    run = save_untrained(starter_folder / "cfg.yaml", overrides).run_dir
    command = [sys.executable, "-m", "seghiero_cli", "export", run, "--onnx", "--json", "--out", tmp_path / "a.onnx"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and re.fullmatch(r"checkpoint: .*/best \(step-\d+\)\n", done.stderr)
    assert json.loads(done.stdout)["argmax_agreement"] >= GATES["fp32"].min_agreement
