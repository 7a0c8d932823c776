"""`seghiero predict` as a process of its own: interrupted, and on images too large for memory."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.masks import LEVELS, read_png, written_files
from support.processes import ENVIRONMENT
from support.tiny import TINY, save_untrained

MEASURE = """
import sys
import numpy as np
import support.tiny
from seghiero_core import load

def peak():  # KiB; ru_maxrss would begin with that of the process that started this one
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

load(sys.argv[1])(np.zeros((1024, 1024, 3), np.uint8))
before = peak()
sys.argv = ["seghiero", "predict", *sys.argv[1:]]
try:
    from seghiero_cli.main import main
    main()
finally:
    print((peak() - before) / 1024, file=sys.stderr)
"""


@pytest.fixture(scope="module")
def plain_run(starter_folder) -> Path:
    """A run that another process can load: without a backbone that only this one knows."""
    overrides = ["backbone={type: resnet, depth: 18}", TINY[1], "output.name=plain"]
    return save_untrained(starter_folder / "cfg.yaml", overrides).run_dir


def test_interrupted_leaves_whole_files_only(plain_run, images, tmp_path):
    for i in range(10, 400):
        (images / f"{i}.png").symlink_to(images / "0.png")
    line = [sys.executable, "-m", "seghiero_cli", "predict", str(plain_run), str(images), "--json", "--device", "cpu"]
    process = subprocess.Popen(
        [*line, "--out", str(tmp_path / "out")],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    process.stdout.readline()
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    found = written_files(tmp_path / "out")
    assert found and not [name for name in found if name.startswith(".")]
    for name in found:
        assert read_png(tmp_path / "out" / name).shape[:2] == (61, 83)


def check_memory(run: Path, side: int, folder: Path) -> None:
    """Predicting a side x side image may add to what one tile takes: the image, decoded once, and a few strips."""
    small = Image.fromarray(np.random.default_rng(6).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    small.resize((side, side), Image.Resampling.BICUBIC).save(folder / "large.jpg", quality=70)
    line = [sys.executable, "-c", MEASURE, str(run), str(folder / "large.jpg"), "--out", str(folder / "out")]
    done = subprocess.run(line, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for level in LEVELS:
        with Image.open(folder / "out" / f"large.{level}.png") as mask:
            assert mask.size == (side, side)
    decoded = 4 * side**2  # bytes, as Pillow holds it
    strip = 1024 * side * (3 * (1 + 4) + 3)  # ids and confidence of three levels, and the image's rows
    carried = 9 * 128 * side * 4 * 2  # blended logits that wait for the next row of tiles
    grown = float(done.stderr.splitlines()[-1])
    print(f"{side}x{side} px: {grown:.0f} MiB more than one tile")
    assert grown < (decoded + 4 * strip + carried) / 2**20 + 100
    assert grown < 9 * 4 * side**2 / 2**20, "no less than the logits of the whole image"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc")
def test_memory_of_a_large_image_is_bounded(tiny_run, tmp_path):
    check_memory(tiny_run, 4000, tmp_path)


@pytest.mark.slow
def test_20000_by_20000(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    check_memory(tiny_run, 20_000, tmp_path)
