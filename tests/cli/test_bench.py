"""`seghiero bench` as a user runs it, with backbones of a plugin: one that works, one that fails, one that dies."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from support.processes import ENVIRONMENT, seghiero

PLUGIN = """
import os, signal, time
import torch
from torch import nn
from seghiero_core.registry import register_backbone

class Net(nn.Module):
    def __init__(self, behavior):
        super().__init__()
        self.behavior = behavior
        strides = [(3, 4), (4, 2), (4, 2), (4, 2)]
        self.stages = nn.ModuleList(nn.Conv2d(c, 4, 3, stride=s, padding=1) for c, s in strides)

    def forward(self, x):
        print("a component that prints")
        if self.behavior == "fail":
            raise ValueError("this network is broken")
        if self.behavior == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.behavior == "hang":
            time.sleep(1000)
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found

@register_backbone("mine", variants={name: (4, 4, 4, 4) for name in ("work", "fail", "die", "hang")})
def build(variant):
    return Net(variant)
"""
FAST = ["--size", "32x64", "--batch", "2", "--repeats", "1", "--device", "cpu", "--head", "extremely_fast_segformer"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "seghiero_plugins").mkdir()
    (tmp_path / "seghiero_plugins" / "nets.py").write_text(PLUGIN)
    return tmp_path


def test_a_combination_that_fails_is_a_row_with_its_reason(folder):
    chosen = [word for variant in ("die", "fail") for word in ("--backbone", f"mine:{variant}")]
    done = seghiero("bench", "--all", *chosen, *FAST, "--json", cwd=folder)
    assert done.returncode == 5, done.stderr
    document = json.loads(done.stdout)  # and nothing else, although the component prints
    assert document["machine"]["cores"] >= 1 and document["machine"]["torch"]
    died, failed = document["rows"]
    assert "killed" in died["error"] and "memory" in died["error"]
    assert failed["error"] == "ValueError: this network is broken"
    assert (failed["backbone"], failed["head"]) == ("mine fail", "extremely_fast_segformer")
    assert (failed["size"], failed["batch"], failed["classes"]) == ([32, 64], 2, 19)
    assert "2 of 2 combinations failed" in done.stderr


def test_ctrl_c_ends_the_process_of_the_combination_and_prints_what_was_measured(folder):
    words = ["bench", "--all", "--backbone", "mine:work", "--backbone", "mine:hang", *FAST, "--precision", "fp32"]
    command = [sys.executable, "-m", "seghiero_cli", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=folder, env=ENVIRONMENT | {"PYTHONUNBUFFERED": "1"}, **pipes) as process:
        try:
            lines = iter(process.stderr.readline, "")
            seen = [next(line for line in lines if "a component that prints" in line)]  # of the first
            children = psutil.Process(process.pid).children(recursive=True)
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline:
                now = psutil.Process(process.pid).children(recursive=True)
                if now and {child.pid for child in now}.isdisjoint(child.pid for child in children):
                    children = now  # of the second
                    break
                time.sleep(0.05)
            seen.append(next(line for line in lines if "a component that prints" in line))
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, err
    assert "mine work  extremely_fast_segformer" in out and "mine hang" not in out
    assert "Interrupted after 1 of 2 combinations" in err
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def test_one_config_is_measured_without_its_data(run, small, monkeypatch):
    """The process of the combination is started for real; the data set's folders don't exist."""
    small.write_text(small.read_text().replace("train/images", "nowhere"))
    code, out, err = run("bench", small, "--size", "32x32", "--batch", 2, "--repeats", 1, "--threads", 1)
    assert code == 0, err
    assert "cpu in fp32, 1 CPU thread," in out and "batches of 2 at 32x32 px, 4 classes" in out
    assert "resnet 18  extremely_fast_segformer" in out
    assert "multiplication with an addition counts as 2" in err


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "give a config, or --all"),
        (["CFG", "--head", "aspp"], "among --all"),
        (["--all", "--size", "512"], "such as 512x1024"),
        (["--all", "--precision", "fp8"], "training.precision"),
        (["--all", "--device", "tpu"], "tpu"),
        (["--all", "--repeats", 1, "--seconds", 1], "not both"),
        (["--all", "--backbone", "resnet:51"], "no depth '51'"),
    ],
)
def test_what_cannot_be_measured_is_one_message(run, small, words, part):
    code, out, err = run("bench", *[small if word == "CFG" else word for word in words])
    assert code == 2 or (code == 4 and "tpu" in words), err
    assert part in err and out == ""
