"""What `load` takes, and what it refuses."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import numpy as np
import pytest

from seghiero_core import load
from seghiero_core.checkpoint import read_checkpoint
from seghiero_core.errors import CheckpointError, DeviceError, UsageError
from support.processes import ENVIRONMENT
from support.tiny import TINY, save_untrained


def test_run_link_folder_and_file_are_one_checkpoint(tiny_run, photo):
    expected = load(tiny_run)(photo).ids["leaf"]
    folder = (tiny_run / "best").resolve()
    for path in (tiny_run / "last", folder, folder / "model.safetensors"):
        assert np.array_equal(load(path)(photo).ids["leaf"], expected)


def test_loading_never_touches_the_network(starter_folder, photo, monkeypatch):
    overrides = ["backbone={type: resnet, depth: 18, pretrained: true}", "output.name=hub", TINY[1]]
    config = save_untrained(starter_folder / "cfg.yaml", overrides)

    def refuse(*_: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert load(config.run_dir, device="cpu")(photo[:64, :64]).ids["leaf"].shape == (64, 64)


def test_what_only_training_needs_is_left_out(starter_folder, photo):
    config = save_untrained(starter_folder / "cfg.yaml", [*TINY, "output.name=auxiliary"], auxiliary=True)
    tensors = read_checkpoint(config.run_dir / "best").model_tensors()
    assert any(name.startswith("auxiliary.") for name in tensors)
    assert load(config.run_dir)(photo).ids["leaf"].shape == photo.shape[:2]


def test_import_leaves_torch_alone():
    code = "import seghiero_core, sys; assert 'torch' not in sys.modules; from seghiero_core import load; assert load"
    subprocess.run([sys.executable, "-c", code], check=True, env=ENVIRONMENT)
    with pytest.raises(ImportError):
        from seghiero_core import no_such_name  # noqa: F401


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"mode": "leave"}, UsageError, "Did you mean 'leaf'"),
        ({"tta": ["flop"]}, UsageError, "Did you mean 'flip'"),
        ({"tile": 128, "overlap": 65}, UsageError, "half a tile"),
        ({"overlap": 0}, UsageError, "half a tile"),
        ({"batch_size": 0}, UsageError, "--batch-size"),
        ({"tile": 0}, UsageError, "--tile: 0 px"),
        ({"device": "gpu"}, DeviceError, "gpu"),
    ],
)
def test_unknown_options(tiny_run, options, error, words):
    with pytest.raises(error, match=words):
        load(tiny_run, **options)


def test_paths_without_a_model(tiny_run, tmp_path):
    with pytest.raises(UsageError, match="no such run"):
        load(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="contains no checkpoint"):
        load(tmp_path)
    (tmp_path / "a.pth").touch()
    with pytest.raises(UsageError, match="is not a checkpoint"):
        load(tmp_path / "a.pth")
    with pytest.raises(UsageError, match="no such file"):
        load(tmp_path / "a.onnx")
    (tmp_path / "b.onnx").write_bytes(b"not a graph")
    with pytest.raises(CheckpointError, match="b.onnx can't be read as ONNX"):
        load(tmp_path / "b.onnx")


def test_other_onnx_files_are_refused(tmp_path):
    import onnx

    info = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "ab"]
    node = onnx.helper.make_node("Relu", ["a"], ["b"])
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", info[:1], info[1:])), tmp_path / "c.onnx")
    with pytest.raises(UsageError, match="not written by `seghiero export`"):
        load(tmp_path / "c.onnx")


def test_checkpoint_of_another_version(starter_folder):
    config = save_untrained(starter_folder / "cfg.yaml", [*TINY, "output.name=version"])
    manifest = config.run_dir / "best" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 99, "seghiero_version": "9.9"}))
    with pytest.raises(CheckpointError, match=r"seghiero 9\.9 in format 99"):
        load(config.run_dir)
