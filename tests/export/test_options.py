"""Options of `seghiero export` that don't exist or don't fit."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import onnx
import pytest
import torch

from support.tiny import TINY, save_untrained


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--opset", "12"], "--opset: unknown value '12'. Known: 18, 19, 20"),
        (["--opset", "0"], "--opset: unknown value '0'. Did you mean '20'? Known: 18, 19, 20"),
        (["--fp16", "--int8"], "not both"),
        (["--input", "uint16"], "Did you mean 'uint8'"),
        (["--outputs", "mask"], "Did you mean 'masks'"),
        (["--decode", "leave"], "Did you mean 'leaf'"),
    ],
)
def test_unknown_values_write_nothing(run_export, tmp_path, flags, words):
    code, out, err = run_export(*flags)
    assert code == 2 and out == "" and words in err and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "out", "right"),
    [
        (["--onnx"], "a.pt", "a.onnx"),
        ([], "a.pt2", "a.onnx"),
        ([], "a.ONNX", "a.onnx"),
        ([], "model-1.5", "model-1.5.onnx"),
        ([], "a", "a.onnx"),
        (["--pt2"], "a.onnx", "a.pt2"),
        (["--pt2", "--fp16"], "a.pt", "a.pt2"),
    ],
)
def test_an_out_that_names_another_format(run, tiny_run, tmp_path, flags, out, right):
    code, printed, err = run("export", tiny_run, *flags, "--out", tmp_path / out)
    assert code == 2 and printed == "" and f"use --out {tmp_path / right}." in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flags", [["--onnx"], ["--pt2"]])
def test_only_an_export_is_replaced(run, tiny_run, tmp_path, flags):
    path = tmp_path / ("a.onnx" if flags == ["--onnx"] else "a.pt2")
    for other in (b"", b"my own file", other_file(flags)):
        path.write_bytes(other)
        code, printed, err = run("export", tiny_run, *flags, "--out", path)
        assert code == 2 and printed == "" and f"{path} exists and was not written by `seghiero export`" in err
        assert path.read_bytes() == other


def test_a_damaged_archive_is_not_replaced(run, tiny_run, tmp_path):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/metadata.json", "seghiero_version")
    damaged = file.getvalue().replace(b"seghiero_version", b"seghiero_VERSION")  # another checksum
    (tmp_path / "a.pt2").write_bytes(damaged)
    code, _, err = run("export", tiny_run, "--pt2", "--out", tmp_path / "a.pt2")
    assert code == 2 and "a.pt2 exists and was not written by `seghiero export`" in err
    assert (tmp_path / "a.pt2").read_bytes() == damaged


@pytest.mark.parametrize("out", [".", "", "..", "/", "a.onnx"])
def test_a_folder_is_not_a_file(run, tiny_run, tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    Path("a.onnx").mkdir()
    code, _, err = run("export", tiny_run, "--onnx", "--out", out)
    assert code == 2 and err.endswith(
        f"--out {Path(out)} is a folder; give a file in it, such as --out {Path(out) / 'model.onnx'}.\n"
    )


def other_file(flags: list[str]) -> bytes:
    """A valid file of the format that something else has written."""
    if flags == ["--onnx"]:
        graph = onnx.helper.make_graph([], "g", [], [])
        return onnx.helper.make_model(graph, producer_name="pytorch").SerializeToString()
    file = io.BytesIO()
    torch.export.save(torch.export.export(torch.nn.Identity(), (torch.zeros(1),)), file)
    return file.getvalue()


def test_a_decoding_that_does_not_fit_the_scores(starter_folder, run_export):
    overrides = [*TINY, "output.name=sigmoid", "loss={terms: {node_bce: 1}}"]
    run = save_untrained(starter_folder / "cfg.yaml", overrides).run_dir
    code, _, err = run_export("--decode", "expected_cost", checkpoint=run)
    assert code == 2 and "needs a distribution over the leaves" in err
