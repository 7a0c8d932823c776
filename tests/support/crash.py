"""Train a run to its end while killing it again and again: `python tests/support/crash.py CFG KILLS SEED`.

Each attempt is a fork of this process (so it starts quickly), killed with SIGKILL after a random time. After every kill
the run folder must be readable. A run that ends before KILLS kills is started over. A run must end with the weights,
the links and the records of the uninterrupted one. Prints a JSON document.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch

from seghiero_core.checkpoint import newest_intact_checkpoint, read_checkpoint
from seghiero_core.config.loading import load_config
from seghiero_core.training.loop import train


def attempt(config, seconds: float) -> int:
    """Resume training in a process of its own, kill it after `seconds`, and return its exit status."""
    child = os.fork()
    if not child:
        try:
            train(config, resume=True)
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def outcome(run: Path) -> list:
    """What must not depend on kills: the links, what they link to, and the records without times and memory."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [{key: value for key, value in row.items() if key not in ("seconds", "memory_mib")} for row in records]
    names = ("best/model.safetensors", "best/metrics.json", "last/model.safetensors", "last/metrics.json")
    files = [(run / name).read_bytes() for name in names]
    return [(run / "best").resolve().name, (run / "last").resolve().name, kept, files]


def main() -> None:
    cfg, kills, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    config = load_config(cfg, ["training.save_every=1", "output.name=crashed"])
    folder: Path = config.run_dir
    rng = random.Random(seed)
    report = {"kills": 0, "while_saving": 0, "while_validating": 0, "runs": 0, "steps_at_kills": []}
    started = time.monotonic()
    if attempt(config, 600):
        sys.exit("the uninterrupted run failed")
    span, expected = time.monotonic() - started, outcome(folder)
    steps_per_epoch = read_checkpoint(folder / "last").training_state()[1]["steps_per_epoch"]
    shutil.rmtree(folder)
    while True:
        status = attempt(config, rng.uniform(0.05, span) if report["kills"] < kills else 600)
        if status == 0:
            report["runs"] += 1
            if outcome(folder) != expected:
                sys.exit("weights, links or records differ from the uninterrupted run's")
            if report["kills"] >= kills:
                break
            shutil.rmtree(folder)
        elif status != -signal.SIGKILL:
            sys.exit(f"an attempt ended with status {status}")
        else:
            report["kills"] += 1
            checkpoint, damaged = newest_intact_checkpoint(folder)
            if damaged:
                sys.exit(f"damaged after a kill: {damaged}")
            for name in ("last", "best"):
                if (folder / name).is_symlink():
                    read_checkpoint(folder / name)
            report["steps_at_kills"].append(checkpoint.step if checkpoint else 0)
            at_the_end_of_an_epoch = checkpoint and checkpoint.step % steps_per_epoch == 0
            report["while_validating"] += bool(at_the_end_of_an_epoch and not checkpoint.metrics)
            report["while_saving"] += any((folder / "checkpoints").glob(".step-*"))
    print(json.dumps(report))


main()
