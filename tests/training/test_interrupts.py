"""Ctrl-C and SIGTERM: the first saves and stops, the second ends the process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from seghiero_core.checkpoint import read_checkpoint
from seghiero_core.config.loading import load_config
from seghiero_core.training.interrupts import Interrupted
from seghiero_core.training.loop import train
from support.processes import ENVIRONMENT, SUPPORT
from support.runs import assert_same, start, weights


def test_sigterm_to_the_whole_group_saves_and_exits_130(small):
    process = start(small, "training.workers=1")
    os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "continue with --resume" in err
    assert "Traceback" not in err
    assert read_checkpoint(small.parent / "runs/small/last").training_state()[1]["step"] >= 1


def test_a_second_ctrl_c_exits_at_once(small):
    # A step of many seconds: the first Ctrl-C waits for its end, the second doesn't, even in the same operation.
    process = start(small, "transform.size=[1024, 1024]", "training.gradient_accumulation=2")
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    time.sleep(0.02)
    asked = time.monotonic()
    process.send_signal(signal.SIGINT)
    killer = threading.Timer(60, process.kill)
    killer.start()
    process.communicate()
    killer.cancel()
    assert process.returncode in (-signal.SIGINT, 130)
    assert time.monotonic() - asked < 5


def test_a_stop_in_the_validation_is_answered_there(small, monkeypatch):
    import signal

    from seghiero_core.evaluation import evaluate
    from seghiero_core.metrics.metrics import Metrics

    seen = []

    class Interrupting(Metrics):
        def update(self, *arguments, **options):
            seen.append(signal.raise_signal(signal.SIGTERM))
            super().update(*arguments, **options)

    whole = load_config(small, ["output.name=whole", "training.batch_size=1"])
    train(whole)
    config = load_config(small, ["training.batch_size=1"])
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "Metrics", Interrupting)
        with pytest.raises(Interrupted, match="stopped in the validation after step 4"):
            train(config)
    assert len(seen) == 1  # of two validation batches
    assert train(config, resume=True)["event"] == "validation"
    assert_same(weights(whole.run_dir), weights(config.run_dir))


def test_torchrun_and_its_processes_may_all_get_the_signal(small):
    """A cluster signals every process, and torchrun passes its own signal on: each process then gets two."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words += [
        SUPPORT / "ranks.py",
        small,
        "training.batch_size=1",
        "training.epochs=10000",
        "transform.size=[768, 768]",
    ]
    process = subprocess.Popen(words, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    records = small.parent / "runs/small/metrics.jsonl"
    while not records.exists() and process.poll() is None:
        time.sleep(0.05)
    ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in (*map(int, ranks), process.pid):
        os.kill(pid, signal.SIGTERM)
        time.sleep(0.2)  # less than a step takes
    _, err = process.communicate(timeout=120)
    assert len(ranks) == 2
    step = re.search(r"stopped at step (\d+) of \d+; continue with --resume", err)
    assert step, err[-3000:]
    assert read_checkpoint(small.parent / "runs/small/last").training_state()[1]["step"] == int(step[1])
