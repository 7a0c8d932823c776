"""Two processes on the CPU (gloo), started by torchrun, against one."""

from __future__ import annotations

import json
import subprocess
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from seghiero_core.checkpoint import newest_intact_checkpoint, read_checkpoint
from seghiero_core.config.loading import load_config
from seghiero_core.devices import check_processes
from seghiero_core.errors import DeviceError
from seghiero_core.evaluation.checkpoint import evaluate_checkpoint
from seghiero_core.evaluation.files import kept_measurement
from seghiero_core.training.loop import train
from seghiero_core.training.prepare import _synchronize_norms
from support.processes import ENVIRONMENT, SUPPORT, TORCHRUN, torchrun
from support.tiny import TINY, save_untrained

WITHOUT_CHANCE = [
    "head={type: extremely_fast_segformer, dropout: 0}",
    "transform.color_jitter=0",
    "transform.scale=[1, 1]",
]


def losses(run):
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if record["event"] == "step"], records[-1]["metrics"]


@pytest.fixture
def one_thread():
    """As many as the processes have: more round differently, and training amplifies that."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def add_pair(folder, name, rng):
    mask = rng.integers(0, 4, (6, 8), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    mask[:3, :3] = 255
    Image.fromarray(mask).save(folder / "masks" / f"{name}.png")
    image = (60 * mask[..., None] + rng.integers(0, 40, (48, 64, 3))).astype(np.uint8)
    Image.fromarray(image).save(folder / "images" / f"{name}.png")


def test_two_processes_follow_one_and_count_every_image_once(small, one_thread):
    rng = np.random.default_rng(3)
    for i in range(4, 8):
        add_pair(small.parent / "train", i, rng)
    add_pair(small.parent / "val", 2, rng)  # an odd number of images
    options = [*WITHOUT_CHANCE, "training.epochs=3"]
    # BatchNorm sees the same batches of two
    one = load_config(small, [*options, "training.batch_size=2", "training.gradient_accumulation=2", "output.name=one"])
    train(one)
    done = torchrun(small, *options, "training.batch_size=2", "output.name=two", "training.processes=2")
    assert done.returncode == 0, done.stderr[-3000:]
    expected, measured = losses(one.run_dir)
    found, measured_by_two = losses(small.parent / "runs/two")
    assert len(expected) == len(found) == 6
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert measured_by_two["pixels"] == measured["pixels"] == 3 * (48 * 64 - 9)
    assert done.stderr.count("epoch 3/3: leaf mIoU") == 1  # one process speaks
    last = small.parent / "runs/two/last"
    assert read_checkpoint(last).training_state()[1]["step"] == 6
    saved = json.loads((last / "metrics.json").read_text())
    again = json.loads(json.dumps(evaluate_checkpoint(last).document))
    assert saved.pop("epoch") == 3
    for level in again["levels"]:
        del level["worst_confusions"]
    assert {key: again[key] for key in saved} == saved  # to the last digit


def test_two_processes_drop_differently_validate_the_same_model_and_resume_exactly(small):
    options = [TINY[0], "head={type: extremely_fast_segformer, dropout: 0.5}", "training.batch_size=1"]
    done = torchrun(small, *options, "training.ema=0.9", script="resume_ranks.py")
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_processes_agree_on_a_batch_size(small):
    rng = np.random.default_rng(3)
    for i in range(4, 16):
        add_pair(small.parent / "train", i, rng)
    done = torchrun(small, *TINY, "training.val_batch_size=1", script="auto_ranks.py")
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(("device", "norm"), [("cuda", nn.SyncBatchNorm), ("cpu", nn.BatchNorm2d)])
def test_norms_are_synchronized_over_gpus(device, norm):
    accelerator = SimpleNamespace(num_processes=2, device=torch.device(device))
    model = nn.Sequential(nn.BatchNorm2d(4))
    weight = model[0].weight
    model = _synchronize_norms(model, accelerator)
    assert type(model[0]) is norm and model[0].weight is weight


def test_eval_by_two_processes_counts_every_image_once_and_speaks_once(small):
    add_pair(small.parent / "val", 2, np.random.default_rng(3))  # an odd number of images
    run = save_untrained(small, ["training.batch_size=1"]).run_dir
    words = [*TORCHRUN, "-m", "seghiero_cli", "eval", run, "--json"]
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    evaluation = evaluate_checkpoint(run / "best")
    expected = evaluation.document
    assert expected["pixels"] == 3 * (48 * 64 - 9)
    assert json.loads(done.stdout) == json.loads(json.dumps(expected))
    assert kept_measurement(run / "best") == json.loads(json.dumps(evaluation.measurement))  # the images of both


def test_a_dying_rank_ends_all_with_its_own_message(small):
    words = [
        *TORCHRUN,
        SUPPORT / "ranks.py",
        small,
        "training.batch_size=1",
        "training.epochs=1000",
        "training.save_every=3",
    ]
    process = subprocess.Popen(words, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (small.parent / "runs/small/last").exists():
        time.sleep(0.05)
    (small.parent / "train/images/3.png").unlink()  # only one of the two comes to it first
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "3.png no longer exists" in err
    own = err.partition("torch/distributed")[0]  # what follows is torchrun's own report
    assert "another process of the run has ended" in err or "Traceback" not in own, err
    checkpoint, damaged = newest_intact_checkpoint(small.parent / "runs/small")
    assert not damaged
    assert checkpoint.model_tensors()


def test_another_number_of_processes_than_asked_for_is_an_error(small, monkeypatch):
    with pytest.raises(DeviceError, match="training.processes: expected 2 .* has 1.*torchrun --nproc-per-node 2"):
        train(load_config(small, ["training.processes=2"]))
    assert not (small.parent / "runs").exists()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")  # what `accelerate launch --cpu --num_processes 2` leaves
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(DeviceError, match="several processes but started 1.*torchrun"):
        check_processes(1, None)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(DeviceError, match="asked for 4 processes"):
        check_processes(1, None)
    check_processes(4, 4)


def test_sharded_state_goes_out_and_back():
    done = subprocess.run([*TORCHRUN, SUPPORT / "shards.py"], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_shards_where_there_can_be_none_are_an_error(small, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(DeviceError, match="several GPUs only"):
        train(load_config(small))
