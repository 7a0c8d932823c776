"""Windows of rasters are those of the whole image, in every layout, with rasterio and with tifffile alone."""

from __future__ import annotations

import re

import numpy as np
import pytest
import rasterio
import tifffile
from PIL import Image

from seghiero_core.data.bands import read_bands
from seghiero_core.errors import DataError, UsageError
from seghiero_core.predict import raster, windows
from seghiero_core.predict.picture import open_picture
from seghiero_core.predict.raster import is_raster
from seghiero_core.readers import Bands
from support.rasters import LAYOUTS, smooth, write_raster

SIZE = (301, 417)
WINDOWS = [(0, 301, 0, 417), (5, 140, 17, 400), (255, 301, 256, 417), (300, 301, 416, 417), (0, 64, 0, 128)]


@pytest.fixture(params=["rasterio", "tifffile"])
def library(request, monkeypatch):
    if request.param == "tifffile":
        monkeypatch.setattr(raster, "find_spec", lambda name: None)
    return request.param


def assert_windows_equal(picture, expected, valid=None):
    assert (picture.height, picture.width) == expected.shape[:2]
    for top, bottom, left, right in WINDOWS:
        crop = picture.crop(top, bottom, left, right)
        assert np.array_equal(crop, expected[top:bottom, left:right], equal_nan=crop.dtype.kind == "f")
        if valid is not None:
            assert np.array_equal(picture.valid(top, bottom, left, right), valid[top:bottom, left:right])
    if valid is None:
        assert picture.valid is None


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_windows_equal_the_whole(library, layout, tmp_path, monkeypatch):
    monkeypatch.setattr(windows, "KEPT_BYTES", 300_000)
    array = smooth(*SIZE)
    path = write_raster(tmp_path / "a.tif", array, **LAYOUTS[layout])
    assert is_raster(path)
    assert_windows_equal(open_picture(path), array)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.float64])
@pytest.mark.parametrize("interleave", ["pixel", "band"])
def test_bands_are_those_that_training_reads(library, dtype, interleave, tmp_path):
    array = smooth(*SIZE, bands=5, dtype=np.uint8).astype(dtype)
    array[20:90, 30:200] = 7
    array[100:120, :, 2] = 7  # one band alone says nothing
    options = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate", "interleave": interleave}
    path = write_raster(tmp_path / "a.tif", array, **options)
    if array.dtype.kind == "f":
        array[200:210, 5:9, 3] = np.nan
        path = write_raster(tmp_path / "a.tif", array, **options)
    expected = read_bands(path, channels=5, nodata=7)
    picture = open_picture(path, bands=Bands(5, 7.0, (2, 1, 0)))
    assert_windows_equal(picture, expected, ~np.isnan(expected[..., 0]))
    shown = picture.shown(*WINDOWS[1])
    assert shown.dtype == np.uint8 and shown.shape == (135, 383, 3) and (shown[15:85, 13:183] == 0).all()


def test_a_pixel_without_data_is_known(library, tmp_path):
    array = smooth(*SIZE)
    array[50:80] = 0
    array[10:20, :, 1] = 0
    nodata = np.ones(SIZE, bool)
    nodata[50:80] = False
    declared = write_raster(tmp_path / "a.tif", array, nodata=0, **LAYOUTS["strips"])
    assert_windows_equal(open_picture(declared), array, nodata)

    alpha = np.where(nodata, 255, 0).astype(np.uint8)
    alpha[100:110] = 3  # nearly transparent, but there
    rgba = np.concatenate([array, alpha[..., None]], axis=2)
    path = write_raster(tmp_path / "b.tif", rgba, photometric="rgb", alpha="non-premultiplied", **LAYOUTS["tiles"])
    assert_windows_equal(open_picture(path), array, nodata)

    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        path = write_raster(tmp_path / "c.tif", array, **LAYOUTS["tiles"])
        with rasterio.open(path, "r+") as file:
            file.write_mask(nodata)
    assert_windows_equal(open_picture(path), array, nodata)


def test_overviews_are_passed_over(library, tmp_path):
    array = smooth(*SIZE)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        path = write_raster(tmp_path / "a.tif", array, **LAYOUTS["tiles"])
        with rasterio.open(path, "r+") as file:
            file.write_mask(np.ones(SIZE, bool))
            file.build_overviews([2, 4])
    assert_windows_equal(open_picture(path), array, np.ones(SIZE, bool))


def test_colors_of_other_kinds_become_rgb(library, tmp_path):
    array = smooth(*SIZE, bands=1)
    gray = np.repeat(array, 3, axis=2)
    assert_windows_equal(open_picture(write_raster(tmp_path / "gray.tif", array)), gray)
    white = write_raster(tmp_path / "white.tif", array, photometric="miniswhite")
    assert_windows_equal(open_picture(white), 255 - gray)
    wide = smooth(*SIZE, dtype=np.uint16)
    wide_path = write_raster(tmp_path / "wide.tif", wide, compress="deflate")
    assert_windows_equal(open_picture(wide_path), (wide >> 8).astype(np.uint8))
    four = np.concatenate([smooth(*SIZE), array], axis=2)
    infrared = write_raster(tmp_path / "infrared.tif", four, photometric="rgb", alpha="no")
    assert_windows_equal(open_picture(infrared), four[..., :3])

    colors = np.random.default_rng(1).integers(0, 256, (256, 3), dtype=np.uint8)
    image = Image.fromarray(array[..., 0]).convert("P")
    image.putpalette(colors.tobytes())
    image.save(tmp_path / "palette.png")
    path = write_raster(tmp_path / "palette.tif", array)
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {i: tuple(color) for i, color in enumerate(colors.tolist())})
    assert_windows_equal(open_picture(path), colors[array[..., 0]])


def test_files_without_data_somewhere(library, tmp_path):
    """GDAL leaves out tiles that hold nothing."""
    array = np.zeros((*SIZE, 3), np.uint8)
    array[:64, :64] = 9
    path = write_raster(tmp_path / "a.tif", array, SPARSE_OK=True, **LAYOUTS["tiled planes"])
    with tifffile.TiffFile(path) as tiff:
        assert 0 in tiff.pages.first.databytecounts
    assert_windows_equal(open_picture(path), array)


def test_small_plain_files_are_images(tmp_path):
    array = smooth(40, 50)
    Image.fromarray(array).save(tmp_path / "a.tif")
    Image.fromarray(array).save(tmp_path / "a.png")
    for name in ("a.tif", "a.png", "absent.tif"):
        assert not is_raster(tmp_path / name)
    assert open_picture(tmp_path / "a.tif").raster is None


def test_large_plain_files_are_rasters(tmp_path, monkeypatch):
    monkeypatch.setattr(raster, "RASTER_PIXELS", 1999)
    array = smooth(40, 50)
    Image.fromarray(array).save(tmp_path / "a.tif")
    picture = open_picture(tmp_path / "a.tif")
    assert picture.raster.georeference == [] and np.array_equal(picture.whole(), array)
    Image.fromarray(array).save(tmp_path / "turned.tif", tiffinfo={274: 6})
    assert not is_raster(tmp_path / "turned.tif")


def refused(path, words, bands=None):
    with pytest.raises(DataError, match=re.escape(str(path)) + ".*" + words):
        picture = open_picture(path, bands=bands)
        picture.whole()


def test_what_cannot_be_read_is_named(library, tmp_path):
    path = write_raster(tmp_path / "float.tif", smooth(40, 50, dtype=np.float32))
    refused(path, "pixels of 32 bits .float32., whose range is unknown")
    path = write_raster(tmp_path / "five.tif", smooth(40, 50, bands=5))
    refused(path, "5 bands of the kind MINISBLACK, and the network takes RGB")
    refused(path, "has 5 bands, expected 4", Bands(4))
    refused(write_raster(tmp_path / "cmyk.tif", smooth(40, 50, bands=4), photometric="cmyk"), "4 bands of the kind")
    for _ in range(2):
        tifffile.imwrite(tmp_path / "two.tif", smooth(40, 50), append=(tmp_path / "two.tif").exists(), bigtiff=True)
    refused(tmp_path / "two.tif", "holds 2 images, or sub-datasets")
    tags = [(274, 3, 1, 6, True), (33550, 12, 3, (1, 1, 0), True)]
    tifffile.imwrite(tmp_path / "turned.tif", smooth(40, 50), photometric="rgb", extratags=tags)
    refused(tmp_path / "turned.tif", "a raster with an EXIF orientation")
    path = write_raster(tmp_path / "cut.tif", smooth(400, 500), compress="deflate", BIGTIFF="YES")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(path, "can't be read")


def test_the_limit_of_pixels_is_for_rasters_only_where_it_is_given(tmp_path, monkeypatch):
    path = write_raster(tmp_path / "a.tif", smooth(40, 50))
    monkeypatch.setattr("seghiero_core.predict.picture.MAX_PIXELS", 10)
    assert open_picture(path).width == 50
    with pytest.raises(DataError, match="50x40 px, more than the limit of 1999 px"):
        open_picture(path, max_pixels=1999)


def test_absent_libraries_are_named(tmp_path, monkeypatch):
    path = write_raster(tmp_path / "a.tif", smooth(40, 50))
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    with pytest.raises(UsageError, match=r"tifffile; install it with `pip install 'seghiero\[rasters\]'`"):
        open_picture(path)


def test_tifffile_alone_says_what_it_lacks(tmp_path, monkeypatch):
    monkeypatch.setattr(raster, "find_spec", lambda name: None)
    array = smooth(40, 50)
    path = write_raster(tmp_path / "a.tif", array)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages.first.tags["Compression"].overwrite(65001)  # a codec that it knows of, but hasn't
    refused(path, "can't be read by tifffile alone.*install rasterio")
    monkeypatch.setattr(windows, "_LARGEST_STRIP", 1000)
    path = write_raster(tmp_path / "b.tif", array, blockysize=40, compress="deflate")
    refused(path, "strips of 0 MiB, which tifffile would decode at once")


def test_strips_are_decoded_once_for_a_row_of_tiles(library, tmp_path, monkeypatch):
    monkeypatch.setattr(windows, "KEPT_BYTES", 0)
    array = smooth(1200, 900)
    decoded = []
    picture = open_picture(write_raster(tmp_path / "a.tif", array, blockysize=8, compress="deflate"))
    reader = picture.crop.__closure__  # the Windows are behind the function that names errors
    owner = next(cell.cell_contents.__self__ for cell in reader if hasattr(cell.cell_contents, "__self__"))
    decode = owner.decode
    owner.decode = lambda *block: decoded.append(block) or decode(*block)
    for top in (0, 512):
        for left in range(0, 900 - 256, 128):
            picture.crop(top, top + 640, left, left + 256)
    assert len(decoded) == 3 + 3 - 1  # 256 rows each; 512..640 is needed by both
