"""The gradient of a step, however its images are divided into batches and processes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from support.gradients import LOSSES, first_step, registered
from support.processes import ENVIRONMENT, SUPPORT

CONFIG = """
dataset: {train: {images: train/images, masks: train/masks}, val: {images: val/images, masks: val/masks}}
classes:
  labels: {0: sky, 1: grass, 2: disc, 3: ring, 4: round, 5: [sky, ring]}
  tree: {ground: [sky, grass], round: [disc, ring]}
backbone: {type: plain}
head: {type: plain}
transform: {size: [32, 32], scale: [1, 1]}
training: {device: cpu, epochs: 1, workers: 0, precision: fp32, clip_norm: null}
"""


@pytest.fixture(scope="module")
def cfg(tmp_path_factory):
    """Four images of blocks: one labeled throughout, one coarsely, one half ignored, and one ignored."""
    folder, rng = tmp_path_factory.mktemp("gradients"), np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (folder / split / kind).mkdir(parents=True)
        for i, count in enumerate((4, 6, 5, 4)):
            mask = rng.integers(0, count, (8, 8), dtype=np.uint8).repeat(4, axis=0).repeat(4, axis=1)
            mask[{2: 16, 3: 0}.get(i, 32) :] = 255
            image = (40 * mask[..., None] + rng.integers(0, 40, (32, 32, 3))).astype(np.uint8)
            Image.fromarray(mask).save(folder / split / "masks" / f"{i}.png")
            Image.fromarray(image).save(folder / split / "images" / f"{i}.png")
    path = folder / "cfg.yaml"
    path.write_text(CONFIG)
    with registered():
        yield path


@pytest.fixture(scope="module")
def of_two_processes(cfg):
    out = cfg.parent / "two.pt"
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*words, SUPPORT / "gradients.py", cfg, out], env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out)


@pytest.mark.parametrize("loss", LOSSES)
def test_two_processes_one_batch_and_two_accumulated_batches_give_one_gradient(loss, cfg, of_two_processes):
    whole = first_step(cfg, loss, 4, 1)
    assert whole.norm() > 0
    for other in (of_two_processes[loss], first_step(cfg, loss, 2, 2)):
        assert (other - whole).norm() < 1e-5 * whole.norm()
