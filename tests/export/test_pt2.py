"""`seghiero export --pt2`: a program that torch alone can run."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from seghiero_core import load
from seghiero_core.errors import CheckFailed
from seghiero_core.export import single_file
from seghiero_core.export.options import ExportOptions
from seghiero_core.export.single_file import export_checkpoint
from support.processes import ENVIRONMENT

CONSUMER = """
import json, sys
import numpy as np, torch
from PIL import Image

files = {"metadata.json": ""}
program = torch.export.load(sys.argv[1], extra_files=files).module(check_guards=False)
image = torch.from_numpy(np.asarray(Image.open(sys.argv[2]).convert("RGB")).copy()).movedim(2, 0)[None]
found = program(image)
for level in json.loads(files["metadata.json"])["levels"]:
    np.save(f"{sys.argv[3]}/{level['name']}.npy", found[level["ids"]][0].numpy())
assert not any(name.startswith("seghiero") for name in sys.modules)
"""


def test_torch_alone_gives_the_masks_of_the_checkpoint(run, tiny_run, starter_folder, tmp_path):
    path = tmp_path / "out.pt2"
    code, out, err = run("export", tiny_run, "--pt2", "--out", path, "--json")
    row = json.loads(out)
    assert code == 0 and "torch.export.load(" in err and row["path"] == str(path) and "opset" not in row
    assert row["max_abs_error"] <= 1e-4 and row["argmax_agreement"] >= 0.9999
    assert row["outputs"][:2] == ["logits", "ids_leaf"] and row["outputs"][-1] == "confidence_level2"
    single_file._check_out(path, "pt2")  # may be replaced
    image = next((starter_folder / "data" / "val" / "images").iterdir())
    line = [sys.executable, "-c", CONSUMER, str(path), str(image), str(tmp_path)]
    done = subprocess.run(line, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for level, expected in load(tiny_run, device="cpu")(image).ids.items():
        assert (np.load(tmp_path / f"{level}.npy") == expected).mean() > 0.999


def test_any_size_and_batch_and_the_logits_alone(tiny_run, tmp_path):
    options = ExportOptions(format="pt2", input="float32", outputs="logits")
    assert export_checkpoint(tiny_run / "best", tmp_path / "a.pt2", options)["outputs"] == ["logits"]
    program = torch.export.load(tmp_path / "a.pt2").module(check_guards=False)
    network = load(tiny_run, device="cpu").forward
    for batch, height, width in [(1, 1, 1), (2, 1, 70), (3, 64, 96), (1, 33, 31), (1, 256, 320)]:
        images = torch.randint(0, 256, (batch, 3, height, width), generator=torch.Generator().manual_seed(height))
        found = program(images.float())
        assert list(found) == ["logits"] and found["logits"].shape[2:] == (height, width)
        torch.testing.assert_close(found["logits"], network(images.to(torch.uint8)), rtol=1e-4, atol=1e-4)


def test_half_precision(tiny_run, tmp_path):
    options = ExportOptions(format="pt2", precision="fp16")
    row = export_checkpoint(tiny_run / "best", tmp_path / "a.pt2", options)
    assert 0 < row["max_abs_error"] <= 1e-2 * max(1, row["max_abs_logit"])
    state = torch.export.load(tmp_path / "a.pt2").state_dict
    assert {tensor.dtype for name, tensor in state.items() if "backbone" in name and tensor.is_floating_point()} == {
        torch.float16
    }


def test_a_wrong_program_is_not_written(tiny_run, tmp_path, monkeypatch):
    plain = single_file.to_pt2

    def wrong(model, *arguments):
        with torch.no_grad():
            model.model.head.classifier.bias[0] += 0.01
        return plain(model, *arguments)

    monkeypatch.setattr(single_file, "to_pt2", wrong)
    with pytest.raises(CheckFailed, match="fp32 parity failed, nothing was written"):
        export_checkpoint(tiny_run / "best", tmp_path / "a.pt2", ExportOptions(format="pt2"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--onnx"], "either --onnx or --pt2"),
        (["--int8"], "--int8 only applies to ONNX; remove --int8 or --pt2"),
        (["--opset", "20"], "--opset only applies to ONNX; remove --opset or --pt2"),
        (["--hf", "hf"], "remove --pt2"),
    ],
)
def test_unsupported_options(run, tiny_run, tmp_path, monkeypatch, flags, words):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("export", tiny_run, "--pt2", *flags)
    assert (code, out) == (2, "") and words in err and list(tmp_path.iterdir()) == []


def test_predict_refuses_pt2_files(run, tmp_path):
    (tmp_path / "model.pt2").write_bytes(b"x")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    code, _, err = run("predict", tmp_path / "model.pt2", tmp_path / "a.png", "--out", tmp_path / "out")
    assert code == 2 and ".onnx" in err and "model.pt2" in err


def test_without_out_it_is_in_the_run(tiny_run):
    options = ExportOptions(format="pt2", precision="fp16")
    assert single_file.default_path(tiny_run / "best", options) == tiny_run.resolve() / "model-fp16.pt2"
