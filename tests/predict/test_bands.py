"""Images with any number of bands: files and arrays of every kind, and pixels without data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from seghiero_core import load
from seghiero_core.data.bands import read_bands
from seghiero_core.decode import decode
from seghiero_core.errors import DataError, UsageError
from seghiero_core.export.options import ExportOptions
from seghiero_core.export.single_file import export_checkpoint
from support.bands import save_bands, write_config
from support.masks import read_png, written_files
from support.rasters import LAYOUTS, read_raster, smooth, write_raster
from support.tiny import save_untrained

NODATA = -9999
SIZE = (170, 230)
TILES = {"tile": 128, "overlap": 32}


@pytest.fixture(scope="module")
def bands_run(tmp_path_factory) -> Path:
    """An untrained network for five bands of floats."""
    folder = tmp_path_factory.mktemp("bands")
    keys = f", nodata: {NODATA}, rgb: [3, 2, 1]"
    cfg = write_config(folder / "cfg.yaml", 5, [120.0] * 5, [60.0] * 5, keys)
    return save_untrained(cfg, ["output.name=bands"]).run_dir


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    """H,W,5 float32 in stored units, with a hole."""
    array = smooth(*SIZE, bands=5).astype(np.float32)
    array[40:90, 60:150] = NODATA
    array[0, 0, 0] = np.nan
    return array


@pytest.fixture(scope="module")
def absent(scene) -> np.ndarray:
    absent = (scene == NODATA).all(axis=2)
    absent[0, 0] = True
    return absent


def test_masks_are_those_of_the_network(bands_run, scene, absent):
    predictor = load(bands_run, device="cpu")
    assert predictor.channels == 5 and predictor.bands.rgb == (3, 2, 1)
    marked = np.where(absent[..., None], np.nan, scene)
    logits = predictor.forward(torch.from_numpy(marked).permute(2, 0, 1)[None])
    expected = decode(logits, predictor.hierarchy).ids[0][0].numpy()
    found = predictor(scene)
    assert np.array_equal(found.ids["leaf"][~absent], expected[~absent]) and len(np.unique(expected)) == 2
    assert (found.ids["leaf"][absent] == 255).all() and (found.confidence["leaf"][absent] == 0).all()
    assert found.nodata == 255 and found.undecided is None


def test_every_kind_of_image_gives_the_same(bands_run, scene, tmp_path):
    predictor = load(bands_run, device="cpu")
    expected = predictor(scene).ids["leaf"]
    for name in ("a.npy", "a.tif"):
        save_bands(tmp_path / name, scene)
    raster = write_raster(tmp_path / "raster.tif", scene, **LAYOUTS["tiled planes"])
    tensor = torch.from_numpy(scene).permute(2, 0, 1)
    for image in (tmp_path / "a.npy", str(tmp_path / "a.tif"), raster, tensor, scene.astype(np.float64)):
        assert np.array_equal(predictor(image).ids["leaf"], expected)


def test_rasters_in_tiles_equal_arrays_in_tiles(bands_run, scene, absent, tmp_path, predict):
    options = ["--tile", "128", "--overlap", "32", "--json"]
    raster = write_raster(tmp_path / "a.tif", scene, **LAYOUTS["tiles"])
    code, out, err = predict(raster, *options, model=bands_run)
    assert code == 0, err
    predictor = load(bands_run, device="cpu", **TILES)
    expected = predictor(read_bands(raster, channels=5, nodata=NODATA))
    assert np.array_equal(read_raster(tmp_path / "out" / "a.leaf.tif"), expected.ids["leaf"])
    row = json.loads(out)
    assert row["nodata"] == pytest.approx(absent.mean()) and sum(row["shares"]["leaf"].values()) == pytest.approx(1)
    overlay = read_png(tmp_path / "out" / "a.overlay.png")
    assert (overlay[absent] == 0).all() and overlay[~absent].mean() > 30


def test_a_folder_of_arrays(bands_run, scene, absent, tmp_path, predict, run, tiny_run):
    folder = tmp_path / "in"
    folder.mkdir()
    save_bands(folder / "a.npy", scene)
    save_bands(folder / "b.tif", np.nan_to_num(scene.clip(0)))
    code, out, err = predict(folder, "--json", model=bands_run)
    assert code == 0, err
    rows = [json.loads(line) for line in out.splitlines()]
    assert ["nodata" in row for row in rows] == [True, False] and rows[0]["nodata"] == pytest.approx(absent.mean())
    assert written_files(tmp_path / "out") == ["a.leaf.png", "a.overlay.png", "b.leaf.png", "b.overlay.png"]
    predictor = load(bands_run, device="cpu")
    assert np.array_equal(read_png(tmp_path / "out" / "a.leaf.png"), predictor(scene).ids["leaf"])
    with Image.open(tmp_path / "out" / "a.leaf.png") as mask:
        assert mask.mode == "P" and mask.convert("RGB").getpixel((70, 50)) == (0, 0, 0)
    code, _, err = run("predict", tiny_run, folder, "--out", tmp_path / "rgb", "--device", "cpu")
    assert "skipped 1 file of other types (1 .npy)" in err


def test_pseudo_labels_leave_out_pixels_without_data(bands_run, scene, absent, tmp_path, run):
    save_bands(tmp_path / "a.npy", scene)
    words = [tmp_path / "a.npy", "--out", tmp_path / "out", "--confidence", "0.6", "--device", "cpu"]
    assert run("pseudo-label", bands_run, *words)[0] == 0
    mask = read_png(tmp_path / "out" / "a.png")
    found = load(bands_run, device="cpu", mode="top_down", confidence=0.6)(scene)
    assert (mask[absent] == 255).all() and np.array_equal(mask, found.ids["leaf"])


@pytest.mark.parametrize("augmentations", [("flip",), ("scales",)])
def test_augmentation_keeps_units(bands_run, scene, absent, augmentations):
    plain, augmented = (load(bands_run, device="cpu", tta=tta)(scene).ids["leaf"] for tta in ((), augmentations))
    assert (augmented[absent] == 255).all() and (plain == augmented)[~absent].mean() > 0.8


def test_exported_files_take_bands(bands_run, scene, tmp_path):
    export_checkpoint(bands_run / "best", tmp_path / "model.onnx", ExportOptions())
    exported, predictor = load(tmp_path / "model.onnx", device="cpu"), load(bands_run, device="cpu")
    assert exported.bands == predictor.bands
    assert (exported(scene).ids["leaf"] == predictor(scene).ids["leaf"]).mean() > 0.999


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((9, 9, 3), np.uint8), r"an array H,W,5, for the 5 bands .* found shape \(9, 9, 3\) of uint8"),
        (np.zeros((9, 9), np.uint8), "an array H,W,5"),
        (torch.zeros(9, 9, 5), r"a tensor 5,H,W.* found shape \(9, 9, 5\)"),
        (np.zeros((0, 9, 5), np.uint8), "empty"),
        (Image.new("RGB", (9, 9)), "an array H,W,5"),
    ],
)
def test_other_bands_are_refused(bands_run, image, words):
    with pytest.raises(UsageError, match=words):
        load(bands_run, device="cpu")(image)


def test_files_with_other_bands_are_named(bands_run, tmp_path):
    predictor = load(bands_run, device="cpu")
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png has 3 bands, expected 5"):
        predictor(tmp_path / "a.png")
    write_raster(tmp_path / "a.tif", smooth(40, 50))
    with pytest.raises(DataError, match=r"a\.tif has 3 bands, expected 5"):
        predictor(tmp_path / "a.tif")
