"""Training on shards from a web server, with a cache of a ninth of the data, through SIGKILLs."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import yaml
from PIL import Image

from seghiero_core.config.loading import load_config
from seghiero_core.data.shards import pack
from support.processes import ENVIRONMENT, SUPPORT
from support.runs import assert_same, records, weights
from support.tiny import TINY
from support.web import serve

IMAGES = 30
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture
def served(small, tmp_path):
    """The server, and the config of `small` with 30 training images of 0.3 MiB, each in a shard on the server."""
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        image = rng.integers(0, 256, (320, 320, 3), dtype=np.uint8)
        mask = rng.integers(0, 4, (10, 10), dtype=np.uint8).repeat(32, axis=0).repeat(32, axis=1)
        Image.fromarray(image).save(tmp_path / "train" / "images" / f"{number}.png")
        Image.fromarray(mask).save(tmp_path / "train" / "masks" / f"{number}.png")
    train, _ = pack(load_config(small), tmp_path / "shards", 1)
    with serve(tmp_path / "shards") as server:
        document = yaml.safe_load(small.read_text())
        document["dataset"] = {
            "type": "shards",
            "root": "shards",
            "train": f"{server.url}/{train.pattern}",
            "val": "val-{000..001}.tar",
            "window": 2,
            "cache_dir": str(tmp_path / "cache"),
            "cache_mib": 1,
            "check": "fast",
        }
        document["training"] |= {"epochs": 1, "batch_size": 6}
        small.write_text(yaml.safe_dump(document))
        yield server, small, tmp_path / "cache"


def size_of(cache):
    return sum(path.stat().st_size for path in cache.glob("*.*"))


def test_a_killed_run_ends_bit_for_bit_like_an_uninterrupted_one(served):
    server, cfg, cache = served
    words = [sys.executable, SUPPORT / "crash.py", cfg, "1", "1"]
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["kills"] == 1
    assert size_of(cache) <= 2**20 and max(server.requests.values()) > 2  # shards left the cache, and came again


def start(cfg, processes, *options):
    words = [sys.executable, *(TORCHRUN if processes > 1 else []), SUPPORT / "resumed.py", cfg, *options]
    return subprocess.Popen(words, env=ENVIRONMENT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def lines(run):
    file = run / "metrics.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
def test_five_kills(served, workers, processes):
    server, cfg, cache = served
    rng = random.Random(workers + processes)
    options = [*TINY, f"training.workers={workers}", "training.batch_size=2", "training.epochs=3"]
    options += ["training.save_every=1", "training.precision=fp32", "transform.size=[64, 64]"]
    whole, parts = (load_config(cfg, [f"output.name={name}"]).run_dir for name in ("whole", "parts"))
    done = start(cfg, processes, *options, "output.name=whole")
    _, err = done.communicate(timeout=600)
    assert done.returncode == 0, err[-3000:]
    kills = 0
    while kills < 5:
        process = start(cfg, processes, *options, "output.name=parts")
        target = lines(parts) + rng.randint(1, 5)
        while lines(parts) < target and process.poll() is None:
            time.sleep(rng.uniform(0.001, 0.02))
        assert process.poll() is None, "the run ended before it was killed often enough"
        for each in [*psutil.Process(process.pid).children(recursive=True), process]:
            each.kill()
        process.communicate()
        kills += 1
    done = start(cfg, processes, *options, "output.name=parts")
    _, err = done.communicate(timeout=600)
    assert done.returncode == 0, err[-3000:]
    assert_same(weights(whole), weights(parts))
    assert records(whole) == records(parts)
    assert size_of(cache) <= 2**20 and max(server.requests.values()) > 2
