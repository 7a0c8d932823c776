"""Downloads with the real huggingface_hub from a hub on 127.0.0.1, each in its own process."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save

from support.hub import Hub
from support.processes import ENVIRONMENT

BLOCK_SOCKETS = """
import socket
def refuse(*_):
    raise AssertionError("tried to open a connection")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
"""
SECTIONS = [
    {"type": "resnet", "depth": 18, "pretrained": True},
    {"type": "convnext", "variant": "tiny", "pretrained": "dinov3_lvd1689m"},
    {"type": "segformer", "variant": "mit-b0", "pretrained": True},
]
REPOSITORIES = ["timm/resnet18.a1_in1k", "timm/convnext_tiny.dinov3_lvd1689m", "nvidia/mit-b0"]
BUILD = """
import hashlib, json, sys
from seghiero_core.model import create_backbone
rows = []
for section in json.loads(sys.argv[1]):
    events = []
    net = create_backbone({"backbone": section}, events.append)
    sha = hashlib.sha256(b"".join(value.numpy().tobytes() for value in net.state_dict().values())).hexdigest()
    rows.append({"sha": sha, "events": events})
print(json.dumps(rows))
"""


def python(*words: object, code: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**ENVIRONMENT, **environment}
    command = [sys.executable, *(["-c", code] if code else ["-m", "seghiero_cli"]), *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def digest(tensors) -> str:
    return hashlib.sha256(b"".join(value.numpy().tobytes() for value in tensors)).hexdigest()


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> tuple[dict[str, dict[str, bytes]], list[str]]:
    """Repositories of real variants with random weights, and the digests of their backbones."""
    from transformers import SegformerForImageClassification

    from seghiero_core.backbones.networks.mit import mit_config
    from seghiero_core.model.factories import create_backbone

    torch.manual_seed(0)
    files, digests = [], []
    for name in ("resnet18", "convnext_tiny"):
        state = timm.create_model(name).state_dict()
        files.append({"model.safetensors": save(state)})
        section = SECTIONS[len(digests)] | {"pretrained": False}
        digests.append(digest(state[key] for key in create_backbone({"backbone": section}).state_dict()))
    # The MiT repositories have only a pickle, with the key names of transformers 4.
    folder = tmp_path_factory.mktemp("mit")
    net = SegformerForImageClassification(mit_config("mit-b0"))
    net.save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    assert any(key.startswith("segformer.encoder.block.0.0.attention.self.query") for key in state)
    torch.save(state, folder / "pytorch_model.bin")
    files.append({"pytorch_model.bin": (folder / "pytorch_model.bin").read_bytes(), "config.json": b"{}"})
    digests.append(digest(net.segformer.stages.state_dict().values()))
    return dict(zip(REPOSITORIES, files, strict=True)), digests


@pytest.fixture(scope="module")
def fetched(published, tmp_path_factory) -> tuple[Path, str, Hub]:
    """A cache with all three repositories, the output of the process that filled it, and its hub, now stopped."""
    home = tmp_path_factory.mktemp("home")
    with Hub(published[0]) as hub:
        done = python(json.dumps(SECTIONS), code=BUILD, HF_ENDPOINT=hub.endpoint, HF_HOME=str(home))
    assert done.returncode == 0, done.stderr
    return home, done.stdout, hub


def test_each_family_is_downloaded_from_the_hub(published, fetched):
    rows = json.loads(fetched[1])
    assert [row["sha"] for row in rows] == published[1]
    for row, repository, tail in zip(
        rows, REPOSITORIES, ("fc.weight", "head.fc.weight", "classifier.weight"), strict=True
    ):
        download, weights = row["events"]
        assert (download["event"], download["repository"]) == ("download", repository)
        assert weights["source"] == repository.removeprefix("timm/")
        assert weights["coverage"] == 1
        assert weights["missing"] == weights["reshaped"] == []
        assert tail in weights["unexpected"]
    assert [path for method, path in fetched[2].requests if method == "GET" and "/cdn/" not in path] != []


def test_cached_weights_open_no_socket(published, fetched):
    home, _, hub = fetched
    done = python(json.dumps(SECTIONS), code=BLOCK_SOCKETS + BUILD, HF_ENDPOINT=hub.endpoint, HF_HOME=str(home))
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [row["sha"] for row in rows] == published[1]
    assert [len(row["events"]) for row in rows] == [1, 1, 1]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("down", ["Connection refused"]),
        ("failing", ["status 503"]),
        ("truncated", ["should be of size"]),
        ("dropped", ["could not be downloaded"]),
        ("altered", ["doesn't have the hash", "removed"]),
        ("unauthorized", ["401", "hf auth login"]),
        ("gated", ["license", "hf auth login"]),
        ("no repository", ["404", "check the name"]),
        ("no file", ["has no model.safetensors or pytorch_model.bin"]),
    ],
)
def test_each_hub_failure_gives_one_message_with_a_fix(tmp_path, fault, words):
    repository = {"no repository": {}, "no file": {REPOSITORIES[0]: {}}}
    files = repository.get(fault, {REPOSITORIES[0]: {"model.safetensors": save({"conv1.weight": torch.rand(64, 3)})}})
    with Hub(files) as hub:
        hub.fault = fault
        if fault == "down":
            hub.stop()
        started = time.monotonic()
        done = python("weights", "fetch", "resnet:18", HF_ENDPOINT=hub.endpoint, HF_HOME=str(tmp_path))
        seconds = time.monotonic() - started
    assert done.returncode == 4, done.stderr
    assert done.stdout == ""
    errors = [line for line in done.stderr.splitlines() if not line.startswith("downloading ")]
    assert errors[0].startswith("error: ") and len(errors) <= 2, done.stderr
    assert all(word in done.stderr for word in ("timm/resnet18.a1_in1k", *words)), done.stderr
    assert seconds < 30
    assert not list(tmp_path.rglob("snapshots/*/*"))
    assert not [path for path in tmp_path.rglob("blobs/*") if path.is_file()]


def test_altered_weights_stop_training(published, small, tmp_path):
    with Hub(published[0]) as hub:
        hub.fault = "altered"
        command = ("train", small, "--set", "backbone.pretrained=true")
        done = python(*command, HF_ENDPOINT=hub.endpoint, HF_HOME=str(tmp_path / "home"))
    assert done.returncode == 4, done.stderr
    assert "doesn't have the hash" in done.stderr
    assert not (small.parent / "runs").exists()


def test_fetched_weights_train_and_predict_with_sockets_blocked(published, small, tmp_path):
    home = str(tmp_path / "home")
    small.write_text(small.read_text().replace("depth: 18", "depth: 18, pretrained: true"))
    with Hub(published[0]) as hub:
        done = python("weights", "fetch", small, HF_ENDPOINT=hub.endpoint, HF_HOME=home)
        assert done.returncode == 0, done.stderr
    where = python("weights", "where", "--json", HF_HOME=home)
    rows = {row["repository"]: row for row in json.loads(where.stdout)}
    assert len(rows) == 16
    assert [name for name, row in rows.items() if row["cached"]] == ["timm/resnet18.a1_in1k"]
    assert Path(rows["timm/resnet18.a1_in1k"]["path"]).is_relative_to(rows["timm/resnet18.a1_in1k"]["folder"])

    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "sitecustomize.py").write_text(BLOCK_SOCKETS)
    offline = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join([str(tmp_path / "blocked"), str(Path.cwd())])}
    done = python("train", small, "--set", "training.epochs=1", **offline, HF_HOME=home)
    assert done.returncode == 0, done.stderr
    assert "weights: resnet18.a1_in1k (own layout): " in done.stderr
    run = small.parent / "runs" / "small"
    (report,) = json.loads((run / "weights.json").read_text())
    assert report["unexpected"] == ["fc.bias", "fc.weight"]
    assert len(report["loaded"]) == len(timm.create_model("resnet18", num_classes=0).state_dict())

    # A trained checkpoint needs neither the cache nor a socket.
    image = next((small.parent / "val" / "images").glob("*.png"))
    commands = [
        ["eval", run],
        ["predict", run, image, "--out", tmp_path / "masks"],
        ["export", run, "--onnx"],
        ["train", small, "--resume", "--set", "training.epochs=2"],
    ]
    code = "import sys\nfrom seghiero_cli.main import main\n"
    for command in commands:
        code += f"sys.argv = {['seghiero', *map(str, command)]}\n"
        code += "try:\n    main()\nexcept SystemExit as left:\n    assert not left.code, left.code\n"
    done = python(code=code, **offline, HF_HOME=str(tmp_path / "empty"))
    assert done.returncode == 0, done.stderr
    assert (run / "model.onnx").exists()
    assert "\nweights: " not in done.stderr


def test_a_changed_cached_file_is_refused_and_downloaded_again(tmp_path):
    content = save({"conv1.weight": torch.rand(64, 3)})
    home = {"HF_HOME": str(tmp_path)}
    with Hub({REPOSITORIES[0]: {"model.safetensors": content}}) as hub:
        fetch = ("weights", "fetch", "resnet18.a1_in1k")
        assert python(*fetch, HF_ENDPOINT=hub.endpoint, **home).returncode == 0
        (path,) = tmp_path.rglob("model.safetensors")
        path.resolve().write_bytes(content[:-1] + b"!")
        code = "from seghiero_core.weights.hub import fetch_file; fetch_file('timm/resnet18.a1_in1k')"
        done = python(code=code, HF_ENDPOINT=hub.endpoint, **home)
        assert "WeightsError" in done.stderr
        assert "seghiero weights fetch timm/resnet18.a1_in1k" in done.stderr
        done = python("weights", "fetch", "timm/resnet18.a1_in1k", HF_ENDPOINT=hub.endpoint, **home)
        assert done.returncode == 0, done.stderr
        assert path.read_bytes() == content


def test_unknown_names_are_usage_errors(run):
    code, _, err = run("weights", "fetch", "resnot")
    assert (code, "Did you mean 'resnet'?" in err) == (2, True)
    code, _, err = run("weights", "fetch", "resnet:19")
    assert (code, "resnet has no depth '19'" in err) == (2, True)


def test_where_imports_no_torch(tmp_path):
    code = (
        "import sys; sys.argv = ['seghiero', 'weights', 'where']\nfrom seghiero_cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as left:\n    assert not left.code\nassert 'torch' not in sys.modules"
    )
    done = python(code=code, HF_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "nvidia/mit-b5" in done.stdout and "timm/resnet50.a1_in1k" in done.stdout
    assert str(tmp_path / "hub") in done.stdout and "models--timm--convnext_tiny.fb_in22k" in done.stdout
