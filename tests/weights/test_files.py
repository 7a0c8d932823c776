"""Weights from files: what is read besides a state dict, and errors that name the file and key at fault."""

from __future__ import annotations

import json
import os
import pickle
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from torch import nn

from seghiero_core.errors import WeightsError
from seghiero_core.model.factories import build_model, create_backbone, get_statistics
from seghiero_core.weights.files import read_weights
from support.tiny import TINY, save_untrained

RESNET = {"type": "resnet", "depth": 18}
CONVNEXT = {"type": "convnext", "variant": "tiny"}


def load(section: dict, path: Path) -> tuple[nn.Module, dict]:
    """The backbone with the weights at `path`, in eval mode, and the report."""
    events: list[dict] = []
    net = create_backbone({"backbone": {**section, "pretrained": str(path)}}, events.append)
    (report,) = events
    return net.eval(), report


def test_a_seghiero_run_gives_its_backbone_and_statistics(starter_folder):
    overrides = ["backbone={type: resnet, depth: 18}", TINY[1], "output.name=source"]
    config = save_untrained(starter_folder / "cfg.yaml", overrides)
    expected = load_file(config.run_dir / "best" / "model.safetensors")
    for path in (config.run_dir, config.run_dir / "last", config.run_dir / "best" / "model.safetensors"):
        net, report = load(RESNET, path)
        assert not report["missing"] and not report["unexpected"]
        assert all(torch.equal(value, expected[f"backbone.{key}"]) for key, value in net.state_dict().items())
    model = build_model({"backbone": {**RESNET, "pretrained": str(config.run_dir)}}, 3, embedding=False)
    torch.testing.assert_close(model.mean, expected["mean"])
    file = config.run_dir / "best" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="model.safetensors: damaged or not a safetensors file"):
        get_statistics({"backbone": {**RESNET, "pretrained": str(config.run_dir)}})


def test_a_safetensors_file_may_begin_like_a_pickle(tmp_path):
    path = tmp_path / "model.safetensors"
    for length in range(128):  # of the header, whose first byte is a pickle's where it is 128
        save_file({"x" * (length + 1): torch.zeros(1)}, path)
        if path.read_bytes()[0] == 128:
            break
    assert path.read_bytes()[0] == 128 and len(read_weights(path)) == 1


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "write", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing["extra"], protocol=2))]
)
def test_a_pickle_that_could_run_code_is_refused_without_running_it(tmp_path, write):
    state = create_backbone({"backbone": RESNET}).state_dict()
    write({"state_dict": state, "extra": Evil(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match="evil.pth: refused") as raised:
        load(RESNET, tmp_path / "evil.pth")
    assert "mkdir" in str(raised.value)
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Evil(tmp_path / "ran")))  # proves that the pickle does run code when loaded normally
    assert (tmp_path / "ran").exists()


def with_header(content: bytes, change) -> bytes:
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    change(header)
    written = json.dumps(header).encode()
    return struct.pack("<Q", len(written)) + written + content[8 + size :]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda b: with_header(b, lambda h: h["bn1.bias"].update(shape=[640])), "'bn1.bias' has 256 bytes"),
        (lambda b: with_header(b, lambda h: h["bn1.bias"].update(data_offsets=[0, 9999999])), "'bn1.bias'"),
        (lambda b: b[:-100], "'layer4.1.bn2.weight' ends at byte"),
        (lambda b: struct.pack("<Q", 1 << 60) + b[8:], "header is longer than the file"),
        (lambda b: b"not weights", "longer than the file"),
    ],
)
def test_a_wrong_header_is_refused_with_the_key(tmp_path, damage, words):
    state = create_backbone({"backbone": RESNET}).state_dict()
    state = {key: value for key, value in state.items() if key.startswith("bn1") or key == "layer4.1.bn2.weight"}
    path = tmp_path / "w.safetensors"
    path.write_bytes(damage(save({key: value.float() for key, value in state.items()})))
    with pytest.raises(WeightsError, match="w.safetensors: damaged or not a safetensors file") as raised:
        load(RESNET, path)
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("w.pth", b"abc", "not a weights file; expected .safetensors or a state dict written by torch.save"),
        ("w.pth", b"\x89PNG\r\n\x1a\n", "not a weights file"),
        ("w.pth", b"", "the file is empty"),
        ("w.safetensors", b"", "the file is empty"),
        (
            "w.safetensors",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
            "fetch them with `git lfs pull`",
        ),
        ("w.pth", b"\n<!DOCTYPE html><html>404</html>", "a web page, not weights"),
        ("w.pth", save({"a": torch.zeros(2)}), "rename it to .safetensors"),
        ("w.safetensors", b"PK\x03\x04", "rename it to .pth"),
        ("w.pth", b"PK\x03\x04" + bytes(100), "damaged or not a PyTorch file (PytorchStreamReader failed"),
    ],
)
def test_a_file_of_another_kind_is_named_as_what_it_is(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError) as raised:
        read_weights(tmp_path / name)
    assert words in str(raised.value) and str(raised.value).startswith(str(tmp_path / name))
    assert "run code" not in str(raised.value) and len(str(raised.value).splitlines()) == 1


def test_a_missing_file_names_a_similar_one(tmp_path):
    (tmp_path / "resnet.pth").touch()
    with pytest.raises(WeightsError, match=r"resnte\.pth: no such file\. Did you mean '.*resnet\.pth'\?"):
        read_weights(tmp_path / "resnte.pth")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s["layer1.0.conv1.weight"].view(-1)[5].fill_(float("nan")), "'layer1.0.conv1.weight' contains NaN"),
        (lambda s: s["layer3.1.bn1.running_var"][0].fill_(float("inf")), "'layer3.1.bn1.running_var' contains NaN"),
        (lambda s: s.update({"conv1.weight": torch.zeros(64, 3, 3, 3)}), "'conv1.weight' has shape (64, 3, 3, 3)"),
        (lambda s: s.update({"bn1.weight": torch.ones(64, dtype=torch.int8)}), "'bn1.weight' has type torch.int8"),
        (lambda s: [s.pop(k) for k in list(s) if k.startswith("layer4")], "Missing: layer4.0.conv1.weight"),
        (lambda s: s.update({f"ema.{k}": v.clone() for k, v in s.items()}), "two networks that fit"),
    ],
)
def test_wrong_weights_are_refused_and_nothing_is_loaded(tmp_path, change, words):
    torch.manual_seed(0)
    state = create_backbone({"backbone": RESNET}).state_dict()
    change(state)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError) as raised:
        load(RESNET, tmp_path / "w.safetensors")
    assert words in str(raised.value)
    assert "w.safetensors" in str(raised.value)


@pytest.mark.parametrize(("section", "deeper"), [(RESNET, {"depth": 34}), (CONVNEXT, {"variant": "small"})])
def test_weights_of_a_deeper_variant_are_refused_even_if_every_shape_fits(tmp_path, section, deeper):
    state = create_backbone({"backbone": {**section, **deeper}}).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=f"these are weights of {section['type']} {next(iter(deeper.values()))}"):
        load(section, tmp_path / "w.safetensors")


def test_a_timm_folder_gives_its_statistics(tmp_path):
    save_file(create_backbone({"backbone": RESNET}).state_dict(), tmp_path / "model.safetensors")
    published = {"architecture": "resnet18", "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.5, 0.75]}}
    (tmp_path / "config.json").write_text(json.dumps(published))
    for path in (tmp_path, tmp_path / "model.safetensors"):
        config = {"backbone": {**RESNET, "pretrained": str(path)}}
        assert get_statistics(config) == ((0.5, 0.5, 0.5), (0.25, 0.5, 0.75))


def test_a_path_is_relative_to_the_config(small, run, monkeypatch, tmp_path):
    (small.parent / "weights").mkdir()
    save_file(create_backbone({"backbone": RESNET}).state_dict(), small.parent / "weights" / "w.safetensors")
    from seghiero_core.config.loading import load_config

    monkeypatch.chdir(tmp_path)
    config = load_config(small, ["backbone.pretrained=weights/w.safetensors"])
    assert config.backbone.pretrained == str(small.parent / "weights" / "w.safetensors")
    assert load_config(small, ["backbone.pretrained=a1_in1k"]).backbone.pretrained == "a1_in1k"
