"""The masks of a raster are those of the image read whole, with its georeference."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
import tifffile
import torch
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.rpc import RPC
from rasterio.transform import Affine

from seghiero_core import load
from seghiero_core.decode import decode
from seghiero_core.model.tiling import tile_spans
from seghiero_core.predict import raster, raster_writer
from support.masks import LEVELS, read_png, written_files
from support.rasters import LAYOUTS, read_raster, smooth, write_raster
from support.tiny import RADIUS

TILES = {"tile": 192, "overlap": 64}
OPTIONS = ["--tile", "192", "--overlap", "64"]
SIZE = (420, 560)


def quietly(function, path):
    """Without the warning that a file has no georeference."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        return function(path)


@pytest.fixture(params=["rasterio", "tifffile"])
def library(request, monkeypatch):
    if request.param == "tifffile":
        monkeypatch.setattr(raster, "find_spec", lambda name: None)
    return request.param


def georeference(path: Path) -> tuple:
    with rasterio.open(path) as file:
        gcps = [(gcp.row, gcp.col, gcp.x, gcp.y, gcp.z) for gcp in file.gcps[0]]
        return file.crs, file.transform, gcps, file.gcps[1], file.rpcs, file.tags().get("AREA_OR_POINT")


def test_masks_are_those_of_the_whole_image(library, predict, tiny_run, tmp_path):
    array = smooth(*SIZE)
    path = write_raster(tmp_path / "a.tif", array, **LAYOUTS["tiles"])
    code, out, err = predict(path, "--json", *OPTIONS)
    assert code == 0, err
    expected = load(tiny_run, device="cpu", **TILES)(array)
    assert written_files(tmp_path / "out") == sorted([*(f"a.{level}.tif" for level in LEVELS), "a.overlay.png"])
    for number, level in enumerate(LEVELS):
        mask = tmp_path / "out" / f"a.{level}.tif"
        assert np.array_equal(read_raster(mask), expected.ids[level])
        assert georeference(mask) == georeference(path)
        with rasterio.open(mask) as file:
            assert file.nodata == 255 and file.dtypes == ("uint8",)
            assert file.profile["tiled"] and file.profile["compress"] == "deflate"
            colors = expected.hierarchy.colors[list(expected.hierarchy.levels[number].nodes)]
            assert [file.colormap(1)[i][:3] for i in range(len(colors))] == [tuple(color) for color in colors.tolist()]
    assert np.array_equal(read_png(tmp_path / "out/a.overlay.png"), expected.overlay())
    row = json.loads(out)
    assert row["nodata"] == 0 and [Path(file).name for file in row["files"]][-1] == "a.overlay.png"
    assert row["shares"]["leaf"] == {
        name: (expected.ids["leaf"] == i).mean() for i, name in enumerate(expected.names["leaf"])
    }
    assert row["confidence"]["leaf"] == pytest.approx(expected.confidence["leaf"].mean(), rel=1e-5)


@pytest.mark.parametrize("kind", ["north up", "geographic", "points", "rational", "none"])
def test_the_georeference_is_kept(library, predict, tmp_path, kind, monkeypatch):
    monkeypatch.setattr(raster, "RASTER_PIXELS", 100)
    points = [GroundControlPoint(row, col, col * 0.1, row * 0.2, 5) for row, col in ((0, 0), (0, 50), (40, 0))]
    numbers = [float(i) for i in range(20)]
    names = [f"{what}_{part}" for what in ("height", "lat", "line", "long", "samp") for part in ("off", "scale")]
    polynomials = [f"{what}_{part}_coeff" for what in ("line", "samp") for part in ("num", "den")]
    rational = RPC(**{name: i + 1.0 for i, name in enumerate(names)}, **dict.fromkeys(polynomials, numbers))
    options = {
        "north up": {"crs": "EPSG:2154", "transform": Affine(0.2, 0, 7e5, 0, -0.2, 6.6e6)},
        "geographic": {"crs": "EPSG:4326", "transform": Affine(1e-5, 0, 12.5, 0, -1e-5, 47.5)},
        "points": {"gcps": points, "crs": "EPSG:4326", "transform": None},
        "rational": {"rpcs": rational, "crs": None, "transform": None},
        "none": {"crs": None, "transform": None},
    }[kind]
    path = quietly(lambda path: write_raster(path, smooth(40, 50), **options), tmp_path / "a.tif")
    assert predict(path)[0] == 0
    found, expected = (quietly(georeference, each) for each in (tmp_path / "out" / "a.leaf.tif", path))
    assert found == expected


def test_a_world_file_counts_with_rasterio(predict, tmp_path, monkeypatch):
    monkeypatch.setattr(raster, "RASTER_PIXELS", 100)
    path = quietly(lambda path: write_raster(path, smooth(40, 50), crs=None, transform=None), tmp_path / "a.tif")
    (tmp_path / "a.tfw").write_text("0.5\n0\n0\n-0.5\n1000.25\n2000.75\n")
    assert predict(path)[0] == 0
    with rasterio.open(tmp_path / "out" / "a.leaf.tif") as mask:
        assert mask.transform == Affine(0.5, 0, 1000, 0, -0.5, 2001)


def test_pixels_without_data_get_the_ignore_value(library, predict, tiny_run, tmp_path):
    array = smooth(*SIZE)
    array[200:300, 100:400] = 0
    path = write_raster(tmp_path / "a.tif", array, nodata=0, **LAYOUTS["strips"])
    absent = (array == 0).all(axis=2)
    code, out, err = predict(path, "--json", *OPTIONS)
    assert code == 0, err
    row, expected = json.loads(out), load(tiny_run, device="cpu", **TILES)(array)
    for level in LEVELS:
        ids = read_raster(tmp_path / "out" / f"a.{level}.tif")
        assert np.array_equal(ids, np.where(absent, 255, expected.ids[level]))
        assert sum(row["shares"][level].values()) == pytest.approx(1)
        assert row["confidence"][level] == pytest.approx(expected.confidence[level][~absent].mean(), rel=1e-5)
    assert row["nodata"] == pytest.approx(absent.mean())
    found = load(tiny_run, device="cpu", **TILES)(path)
    assert found.nodata == 255 and found.undecided is None and (found.confidence["leaf"][absent] == 0).all()
    saved = found.save(tmp_path / "saved" / "a.tif")
    assert [each.name for each in saved[:3]] == [f"a.{level}.tif" for level in LEVELS]
    for each in saved[:3]:
        assert each.read_bytes() == (tmp_path / "out" / each.name).read_bytes()


def test_a_large_overlay_is_reduced(predict, tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(raster_writer, "OVERLAY_SIDE", 190)
    path = write_raster(tmp_path / "a.tif", smooth(*SIZE))
    assert predict(path, *OPTIONS)[0] == 0
    whole = load(tiny_run, device="cpu", **TILES)(path).overlay()
    assert np.array_equal(read_png(tmp_path / "out/a.overlay.png"), whole[::3, ::3])


def test_probabilities_are_the_scores(predict, tmp_path):
    array = smooth(*SIZE)
    path = write_raster(tmp_path / "a.tif", array)
    assert predict(path, "--probabilities", *OPTIONS)[0] == 0
    with np.load(tmp_path / "out" / "a.npz") as scores:
        for level in LEVELS:
            assert scores[level].shape[1:] == SIZE and scores[level].dtype == np.float16
            np.testing.assert_allclose(scores[level].sum(axis=0, dtype=np.float32), 1, atol=5e-3)
            best = scores[level].argmax(axis=0)
            assert (best == read_raster(tmp_path / "out" / f"a.{level}.tif")).mean() > (0.99 if level == "leaf" else 0)
    assert not [name for name in written_files(tmp_path / "out") if name.startswith(".")]


def test_a_damaged_raster_leaves_nothing_and_stops_nothing(predict, tmp_path):
    (tmp_path / "in").mkdir()
    for name in "ab":
        write_raster(tmp_path / "in" / f"{name}.tif", smooth(*SIZE), compress="deflate", blockysize=8)
    with tifffile.TiffFile(tmp_path / "in" / "a.tif") as tiff:
        offset = tiff.pages.first.dataoffsets[40]
    data = bytearray((tmp_path / "in" / "a.tif").read_bytes())
    data[offset : offset + 40] = b"x" * 40
    (tmp_path / "in" / "a.tif").write_bytes(data)
    code, out, err = predict(tmp_path / "in", *OPTIONS, "--json")
    assert code == 3 and "1 of 2 images failed" in err and "a.tif can't be read" in err
    assert written_files(tmp_path / "out") == sorted([*(f"b.{level}.tif" for level in LEVELS), "b.overlay.png"])


def test_skip_existing_knows_the_masks_of_rasters(predict, tmp_path):
    path = write_raster(tmp_path / "a.tif", smooth(40, 50))
    assert predict(path)[0] == 0
    code, _, err = predict(path, "--skip-existing", "--json")
    assert code == 0 and "0 of 1 image predicted, 1 skipped" in err


def test_tiles_equal_the_whole_network_in_the_interior(tiny_run, tmp_path):
    """Where no border of a tile is within what a pixel sees, tiles change nothing."""
    array = smooth(1003, 1501)
    predictor = load(tiny_run, device="cpu", tile=640, overlap=64)
    found = predictor(write_raster(tmp_path / "a.tif", array, **LAYOUTS["tiles"]))
    logits = predictor.forward(torch.from_numpy(array).permute(2, 0, 1)[None])
    expected = decode(logits, predictor.hierarchy)
    far = np.ones(array.shape[:2], bool)
    for axis, length in enumerate(array.shape[:2]):
        spans = tile_spans(length, 640, 64)
        borders = np.array([end for _, end in spans[:-1]] + [start for start, _ in spans[1:]])
        near = np.abs(np.arange(length)[:, None] - borders).min(axis=1) < RADIUS
        far &= ~(near[:, None] if axis == 0 else near)
    assert far.mean() > 0.1
    for number, level in enumerate(LEVELS):
        ids, confidence = expected.ids[number][0].numpy(), expected.confidence[number][0].numpy()
        np.testing.assert_allclose(found.confidence[level][far], confidence[far], atol=1e-5)
        assert (found.ids[level] == ids)[far].mean() > 0.9999
    assert len(np.unique(expected.ids[0][0].numpy()[far])) > 2


def test_small_rasters_go_through_the_network_together(predict, tiny_run, tmp_path):
    (tmp_path / "in").mkdir()
    paths = [write_raster(tmp_path / "in" / f"{i}.tif", smooth(40, 50, seed=i)) for i in range(3)]
    Image.fromarray(smooth(40, 50, seed=3)).save(tmp_path / "in" / "3.png")
    code, out, err = predict(tmp_path / "in", "--batch-size", 3)
    assert code == 0 and "4 of 4 images predicted" in out, err
    for path in paths:
        expected = load(tiny_run, device="cpu")(path).ids["leaf"]
        assert (read_raster(tmp_path / "out" / f"{path.stem}.leaf.tif") == expected).mean() > 0.999
    assert not [name for name in written_files(tmp_path / "out") if name.startswith(".")]
