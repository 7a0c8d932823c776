"""`seghiero predict` as a process of its own: interrupted, killed, and on images too large for memory."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from seghiero_core.predict.windows import GDAL_CACHE_BYTES, KEPT_BYTES
from support.masks import LEVELS, read_png, written_files
from support.processes import ENVIRONMENT
from support.rasters import LAYOUTS, write_large_raster
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


def start_measured(run: Path, *words: object) -> subprocess.Popen:
    """Start `seghiero predict RUN WORDS`, which prints the MiB that it took beyond one tile."""
    line = [sys.executable, "-c", MEASURE, str(run), *map(str, words), "--device", "cpu"]
    return subprocess.Popen(line, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish_measured(process: subprocess.Popen) -> float:
    _, err = process.communicate()
    assert process.returncode == 0, err
    return float(err.splitlines()[-1])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc")
def test_memory_of_a_raster_is_bounded(tiny_run, tmp_path):
    """It holds decoded blocks and one row of tiles: of the masks all columns, of the logits the overlap."""
    side = 3000
    path = write_large_raster(tmp_path / "a.tif", side, **LAYOUTS["tiles"])
    grown = finish_measured(start_measured(tiny_run, path, "--out", tmp_path / "out"))
    blocks, carried, rows = KEPT_BYTES + GDAL_CACHE_BYTES, 9 * 128 * side * 4, 3 * 3 * (1024 + 512) * side
    print(f"{side}x{side} px: {grown:.0f} MiB more than one tile")
    # The logits of a tile, which is decoded whole, count too: the image that was predicted first was decoded by bands.
    assert grown < (blocks + carried + rows) / 2**20 + 250
    assert grown < 9 * 4 * side**2 / 2**20, "no less than the logits of the whole raster"


@pytest.mark.slow
def test_a_raster_of_20000_by_20000_is_killed_and_resumed(tiny_run, tmp_path):
    tiles = write_large_raster(tmp_path / "tiles.tif", 20_000, **LAYOUTS["tiles"])
    strips = write_large_raster(tmp_path / "strips.tif", 20_000, **LAYOUTS["strips"])
    out = tmp_path / "out"
    process, state = start_measured(tiny_run, tiles, "--out", out), out / ".tiles.unfinished" / "state.npz"
    written = set()
    while len(written) < 8:  # rows of tiles
        assert process.poll() is None
        if state.exists():
            written.add(state.stat().st_mtime_ns)
        time.sleep(0.2)
    process.kill()
    process.communicate()
    assert not list(out.glob("*.tif"))
    peaks = [finish_measured(start_measured(tiny_run, path, "--out", out)) for path in (tiles, strips)]
    print(f"MiB more than one tile: {peaks[0]:.0f} for the rest of the raster in tiles, {peaks[1]:.0f} for strips")
    assert max(peaks) < 1024
    for level in LEVELS:
        with rasterio.open(out / f"tiles.{level}.tif") as first, rasterio.open(out / f"strips.{level}.tif") as second:
            with rasterio.open(tiles) as source:
                assert first.crs == source.crs and first.transform == source.transform
            for top in range(0, 20_000, 2000):
                window = ((top, top + 2000), (0, 20_000))
                assert np.array_equal(first.read(1, window=window), second.read(1, window=window))
