"""Runs that tests train, stop, start in a process of their own, and compare."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import torch
from safetensors.torch import load_file

from support.processes import ENVIRONMENT


def weights(run):
    return load_file(run / "last/model.safetensors")


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


class StopAt:
    """A `notify` that asks the run to stop, as Ctrl-C would, after a step."""

    def __init__(self, step):
        self.step = step

    def __call__(self, event):
        if event["event"] == "step" and event["step"] == self.step:
            import signal

            signal.raise_signal(signal.SIGINT)


def start(small, *options):
    words = [sys.executable, "-m", "seghiero_cli", "train", small]
    for option in ("training.epochs=10000", *options):
        words += ["--set", option]
    process = subprocess.Popen(words, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for(small.parent / "runs/small/metrics.jsonl", process)
    return process


def wait_for(path, process, seconds=120):
    """Wait until a process has written a file, or has ended, which the caller notices."""
    end = time.monotonic() + seconds
    while not path.exists() and process.poll() is None:
        if time.monotonic() > end:
            process.kill()
            raise TimeoutError(f"{path} wasn't written in {seconds} s: {process.communicate()[1]}")
        time.sleep(0.05)


def records(run):
    """The records of metrics.jsonl without what differs from run to run: times and memory."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in ("seconds", "memory_mib")} for row in rows]
