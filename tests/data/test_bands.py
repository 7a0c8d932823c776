"""Images with any number of bands: as stored, in every format, with and without data."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from seghiero_core.config.loading import load_config
from seghiero_core.data.audit import try_audit
from seghiero_core.data.augmentation import AugmentationParams
from seghiero_core.data.bands import mark_nodata, read_bands, read_header
from seghiero_core.data.display import shown_as_rgb
from seghiero_core.data.jitter import jitter_color
from seghiero_core.data.loaders import SegmentationDataset, eval_loader
from seghiero_core.data.samples import split_samples
from seghiero_core.data.shards import pack
from seghiero_core.data.statistics import band_moments
from seghiero_core.data.transforms import augment_image, resize_with_gaps
from seghiero_core.errors import ConfigError, DataError
from seghiero_core.hierarchy.tree import IGNORE_INDEX
from seghiero_core.readers import Bands
from support.bands import numpy_moments, save_bands, write_config, write_deciding_band

COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # of a PNG, by the number of channels


def encode_png(array: np.ndarray) -> bytes:
    """A PNG by the standard, without any library: big-endian samples, no filter."""
    height, width, channels = array.shape
    bits = 8 * array.dtype.itemsize
    rows = b"".join(b"\0" + row.astype(array.dtype.newbyteorder(">")).tobytes() for row in array)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, COLOR_TYPES[channels], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def noise(dtype, channels, height=9, width=7):
    rng = np.random.default_rng(channels)
    if np.dtype(dtype).kind == "f":
        return rng.normal(0, 1e4, (height, width, channels)).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, (height, width, channels), dtype=dtype, endpoint=True)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_keeps_all_bits(tmp_path, dtype, channels):
    image = noise(dtype, channels)
    path = tmp_path / "a.png"
    path.write_bytes(encode_png(image))
    found = read_bands(path, channels=channels)
    assert found.dtype == (np.uint8 if dtype == np.uint8 else np.float32)
    assert np.array_equal(found, image)
    assert np.array_equal(read_bands(tmp_path / "none", path.read_bytes(), channels=channels), image)
    assert read_header(path, channels=channels)[:2] == ((9, 7), channels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
@pytest.mark.parametrize("channels", [1, 4, 5])
def test_npy_and_tiff_keep_all_values(tmp_path, dtype, channels):
    image = noise(dtype, channels)
    for name in ("a.npy", "a.tif"):
        save_bands(tmp_path / name, image)
        found = read_bands(tmp_path / name, channels=channels)
        assert np.array_equal(found, image) and found.dtype == (np.uint8 if dtype == np.uint8 else np.float32)
        assert read_header(tmp_path / name, channels=channels) == ((9, 7), channels, 1)


@pytest.mark.parametrize(
    "options",
    [
        {},  # a page for each band
        {"planarconfig": "separate", "photometric": "minisblack"},
        {"imagej": True, "metadata": {"axes": "CYX"}},
        {"ome": True, "metadata": {"axes": "CYX"}},
        {"planarconfig": "separate", "photometric": "minisblack", "compression": "lzw", "tile": (16, 16)},
        {"planarconfig": "separate", "photometric": "minisblack", "compression": "zlib", "predictor": True},
        {"planarconfig": "separate", "photometric": "minisblack", "bigtiff": True, "byteorder": ">"},
    ],
)
def test_tiff_may_store_bands_in_any_way(tmp_path, options):
    image = noise(np.uint16, 5, 40, 30)
    tifffile.imwrite(tmp_path / "a.tif", image.transpose(2, 0, 1), **options)
    assert np.array_equal(read_bands(tmp_path / "a.tif", channels=5), image)


def test_a_raster_of_gdal(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    image = noise(np.float32, 5, 40, 30)
    profile = {"driver": "GTiff", "width": 30, "height": 40, "count": 5, "dtype": "float32", "nodata": -1.0}
    place = {"crs": "EPSG:32632", "transform": rasterio.Affine(10, 0, 0, 0, -10, 0)}
    with rasterio.open(tmp_path / "a.tif", "w", **place, **profile, compress="lzw", tiled=True) as file:
        file.write(image.transpose(2, 0, 1))
    assert np.array_equal(read_bands(tmp_path / "a.tif", channels=5), image)


def test_npy_is_rows_columns_bands_unless_only_the_other_order_fits(tmp_path):
    image = noise(np.uint16, 5)
    np.save(tmp_path / "a.npy", image.transpose(2, 0, 1))
    assert np.array_equal(read_bands(tmp_path / "a.npy", channels=5), image)
    np.save(tmp_path / "b.npy", image[..., 0])
    assert np.array_equal(read_bands(tmp_path / "b.npy", channels=1), image[..., :1])
    np.save(tmp_path / "c.npy", image[:5])
    assert np.array_equal(read_bands(tmp_path / "c.npy", channels=5), image[:5])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright_as_pillow_does(tmp_path, orientation):
    image = noise(np.uint8, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(image)
    picture.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as saved:
        expected = np.asarray(ImageOps.exif_transpose(saved))
    assert np.array_equal(read_bands(tmp_path / "a.png", channels=3), expected)
    assert read_header(tmp_path / "a.png", channels=3).size == expected.shape[:2]
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
    assert np.array_equal(read_bands(tmp_path / "a.tif", channels=3), expected)
    assert read_header(tmp_path / "a.tif", channels=3).size == expected.shape[:2]
    deep = encode_png(image.astype(np.uint16) * 257)
    with Image.open(tmp_path / "a.png") as saved:  # its chunk with the orientation, before the pixels
        start = (tmp_path / "a.png").read_bytes().index(b"eXIf") - 4
        chunk = (tmp_path / "a.png").read_bytes()[start : start + 12 + len(exif.tobytes()[6:])]
    found = read_bands(tmp_path / "b.png", deep[:33] + chunk + deep[33:], channels=3)
    assert np.array_equal(found, expected.astype(np.float32) * 257)


def test_another_number_of_bands_names_file_found_and_expected(tmp_path):
    for name, channels in (("a.png", 4), ("a.npy", 6), ("a.tif", 1)):
        image = noise(np.uint8, channels)
        if name == "a.png":
            (tmp_path / name).write_bytes(encode_png(image))
        else:
            save_bands(tmp_path / name, image)
        for read in (read_bands, read_header):
            found = "1 band" if channels == 1 else f"{channels} bands"
            with pytest.raises(DataError, match=rf"{name} has {found}, expected 5\. Replace the file"):
                read(tmp_path / name, channels=5)


def test_what_has_no_bands_of_values_is_refused(tmp_path):
    palette = Image.fromarray(noise(np.uint8, 1)[..., 0]).convert("P")
    palette.save(tmp_path / "palette.png")
    palette.convert("1").save(tmp_path / "bit.png")
    Image.fromarray(noise(np.uint8, 3)).save(tmp_path / "a.ppm")
    np.save(tmp_path / "complex.npy", np.ones((4, 4, 1), complex))
    np.save(tmp_path / "bool.npy", np.ones((4, 4, 1), bool))
    np.save(tmp_path / "line.npy", np.ones(4))
    np.save(tmp_path / "large.npy", np.full((4, 4, 1), 2**24 + 1))
    np.save(tmp_path / "infinite.npy", np.full((4, 4, 1), np.inf))
    np.save(tmp_path / "double.npy", np.full((4, 4, 1), 1e300))
    np.save(tmp_path / "pickled.npy", np.full((4, 4, 1), {}), allow_pickle=True)
    np.save(tmp_path / "empty.npy", np.ones((0, 4, 1)))
    tifffile.imwrite(tmp_path / "stack.tif", noise(np.uint8, 4).reshape(2, 2, 9, 7))
    for name, reason in {
        "palette.png": "a palette",
        "bit.png": "pixels of 1 bit",
        "a.ppm": "the format PPM",
        "complex.npy": "the type complex128",
        "bool.npy": "the type bool",
        "line.npy": r"the shape \(4,\)",
        "large.npy": "above 16777216, which float32 would round",
        "infinite.npy": "infinite values",
        "double.npy": "too large for float32",
        "pickled.npy": "can't be read",
        "empty.npy": "it is empty",
        "stack.tif": "2x2x9x7",
        "gone.npy": "no longer exists",
    }.items():
        with pytest.raises(DataError, match=f"{name}.*{reason}|{name} no longer exists"):
            read_bands(tmp_path / name, channels=1)


def test_damaged_files_are_named(tmp_path):
    image = noise(np.uint16, 3, 40, 40)
    (tmp_path / "a.png").write_bytes(encode_png(image))
    save_bands(tmp_path / "a.tif", image)
    save_bands(tmp_path / "a.npy", image)
    for name in ("a.png", "a.tif", "a.npy"):
        data = (tmp_path / name).read_bytes()
        for length in (0, 7, 20, 60, len(data) // 2):
            with pytest.raises(DataError, match=f"{name} can't be read"):
                read_bands(tmp_path / name, data[:length], channels=3)


def test_pixels_without_data(tmp_path):
    image = noise(np.int16, 4, 6, 6)
    image[0] = -9999
    image[1, :, 0] = -9999  # not all bands: a value like others
    found = mark_nodata(image.astype(np.float32), -9999)
    assert np.isnan(found[0]).all() and np.array_equal(found[1:], image[1:])
    floats = image.astype(np.float32)
    floats[3, 3, 2] = np.nan  # a pixel with a NaN has no data, whatever nodata is
    assert np.isnan(mark_nodata(floats, None)[3, 3]).all()
    assert np.isnan(mark_nodata(floats, None)).sum() == 4
    eight = noise(np.uint8, 4, 6, 6)
    assert mark_nodata(eight, -9999) is eight
    eight[2, 2] = 0
    marked = mark_nodata(eight, 0)
    assert marked.dtype == np.float32 and np.isnan(marked[2, 2]).all() and eight[2, 2, 0] == 0
    lowest = float(np.finfo(np.float32).min)  # the usual value of GDAL
    assert np.isnan(mark_nodata(np.full((1, 1, 2), lowest, np.float32), lowest)).all()


# ── data sets ────────────────────────────────────────────────────────────────────────────────────────────────────────


def samples_of_config(path, split="train"):
    config = load_config(path)
    return config, split_samples(config.dataset, split)


def test_pixels_without_data_are_ignored_and_counted(tmp_path):
    path = write_deciding_band(tmp_path, images=2)
    for name in ("0.tif", "1.tif"):
        image = tifffile.imread(tmp_path / "train/images" / name)
        image[:10, :20] = 65535
        save_bands(tmp_path / "train/images" / name, image)
    path = write_config(path, 5, [0.0] * 5, [1.0] * 5, ", nodata: 65535")
    config, samples = samples_of_config(path)
    image, target = samples[0].read(config.hierarchy)
    assert (target == IGNORE_INDEX).sum() == 200 and (target[:10, :20] == IGNORE_INDEX).all()
    assert np.isnan(image).sum() == 200 * 5
    batch = next(iter(eval_loader(samples, config.hierarchy, workers=0)))
    assert batch["image"].dtype == torch.float32 and torch.isnan(batch["image"]).sum() == 1000
    found = band_moments(samples)
    expected = numpy_moments([sample.decode()[0] for sample in samples])
    assert found.count == expected.count == 2 * (64 * 64 - 200)
    assert np.allclose(found.mean, expected.mean, rtol=1e-12)


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6), offset=st.floats(-1e6, 1e6))
def test_moments_are_those_of_numpy(sizes, offset):
    rng = np.random.default_rng(len(sizes))
    images = [(rng.normal(offset, 3, (size, 4, 3))).astype(np.float32) for size in sizes]
    images[0][0, 0] = np.nan
    found, expected = band_moments([_InMemory(image) for image in images]), numpy_moments(images)
    assert found.count == expected.count
    assert np.allclose(found.mean, expected.mean, rtol=1e-12, atol=1e-12)
    assert np.allclose(found.std, np.sqrt(expected.squares / expected.count), rtol=1e-9, atol=1e-12)


class _InMemory:
    def __init__(self, image):
        self.image, self.bands = image, Bands(image.shape[2])

    def decode(self):
        return self.image, None


def test_files_with_another_number_of_bands_are_one_fault(tmp_path):
    path = write_deciding_band(tmp_path, images=3, extension=".npy")
    for name in ("0.npy", "2.npy"):
        np.save(tmp_path / "train/images" / name, noise(np.uint16, 4, 64, 64))
    config, samples = samples_of_config(path)
    (fault,) = try_audit(samples, config.hierarchy, check="full").faults
    assert fault.kind == "bands" and "2 images don't have 5 bands: 0.npy (4 bands), 2.npy (4 bands)" in str(fault)


def test_without_channels_arrays_are_no_images(tmp_path):
    path = write_deciding_band(tmp_path, images=2, extension=".npy")
    path.write_text(path.read_text().replace("channels: 5, ", ""))
    with pytest.raises(ConfigError, match=r"dataset\.mean: needs dataset\.channels"):
        load_config(path)
    text = path.read_text()
    path.write_text(text[: text.index(", mean")] + "}" + text[text.index("\nclasses") :])
    with pytest.raises(DataError, match="has no image"):
        samples_of_config(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("mean: ", "means: "), "dataset.mean: this key is required with dataset.channels; `seghiero data stats CFG`"),
        (("channels: 5", "channels: 4"), "dataset.mean: expected a number for each of 4 bands, found 5."),
        (("channels: 5", "channels: 5, rgb: [0, 1, 5]"), "dataset.rgb: expected positions from 0 to 4, found 5."),
        (("channels: 5", "channels: 5, rgb: [0, 1]"), "dataset.rgb: expected the positions of red, green and blue"),
        (("channels: 5", "channels: 5, rgb: [0, 1, 1]"), "dataset.rgb: expected the positions of red, green and blue"),
        (("channels: 5", "channels: 0"), "dataset.channels: expected"),
        (("channels: 5", "channels: 5, nodata: 1.0e+300"), "dataset.nodata: expected a number that float32 can hold"),
        (("channels: 5", "channels: 5, nodata: [1]"), "dataset.nodata: expected a number"),
    ],
)
def test_what_is_wrong_with_the_keys_is_named(tmp_path, change, message):
    path = write_config(tmp_path / "c.yaml", 5, [0.0] * 5, [1.0] * 5)
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert message in str(caught.value) and "line 2" in str(caught.value)


def test_red_green_and_blue_are_the_first_three_bands_unless_others_are_named(tmp_path):
    def bands(channels, extra=""):
        path = write_config(tmp_path / "c.yaml", channels, [0.0] * channels, [1.0] * channels, extra)
        config = load_config(path)
        (tmp_path / "again.yaml").write_text(config.to_yaml())
        assert load_config(tmp_path / "again.yaml").dataset == config.dataset
        return config.dataset.bands

    assert bands(5) == Bands(5, None, (0, 1, 2))
    assert bands(2, ", nodata: -9999") == Bands(2, -9999, ())
    assert bands(4, ", rgb: [3, 2, 1]") == Bands(4, None, (3, 2, 1))
    assert bands(4, ", rgb: []") == Bands(4, None, ())


def test_shards_give_the_same_samples_bit_for_bit(tmp_path):
    for extension in (".npy", ".tif"):
        root = tmp_path / extension[1:]
        root.mkdir()
        path = write_deciding_band(root, images=3, extension=extension)
        config, samples = samples_of_config(path)
        pack(config, root / "shards", 2**20)
        text = path.read_text().replace(
            "{train: train, val: val,", "{type: shards, root: shards, train: train-000.tar,"
        )
        (root / "shards.yaml").write_text(text.replace("train-000.tar,", "train-000.tar, val: val-000.tar,"))
        packed, others = samples_of_config(root / "shards.yaml")
        datasets = [SegmentationDataset(each, config.hierarchy, config.transform, seed=3) for each in (samples, others)]
        for index in range(3):
            ours, theirs = (dataset[(0, index, 0)] for dataset in datasets)
            assert torch.equal(ours["image"], theirs["image"]) and torch.equal(ours["target"], theirs["target"])
            assert ours["image"].shape == (5, 64, 64) and ours["image"].dtype == torch.float32


# ── augmentation and pictures ────────────────────────────────────────────────────────────────────────────────────────


def params(size, resized=None, out=None, **changes):
    out = out or size
    return AugmentationParams((0, 0, *size), resized or size, out, (0, 0), changes.pop("flip", False), **changes)


def test_an_eight_bit_image_of_three_bands_is_augmented_as_rgb():
    image = torch.from_numpy(noise(np.uint8, 3, 20, 24)).permute(2, 0, 1)
    change = params((20, 24), (13, 17), flip=True, brightness=1.2, contrast=0.8, saturation=1.1, hue=0.02)
    change = AugmentationParams(**{**vars(change), "size": (13, 17)})
    assert torch.equal(augment_image(image, change, Bands(3, None, (0, 1, 2))), augment_image(image, change).float())


def test_colors_change_in_red_green_and_blue_only():
    image = torch.from_numpy(noise(np.uint8, 5, 8, 8)).permute(2, 0, 1)
    change = params((8, 8), brightness=1.3, contrast=0.7, saturation=1.2, hue=0.03)
    found = augment_image(image, change, Bands(5, None, (4, 0, 2)))
    assert torch.equal(found[[1, 3]], image[[1, 3]].float())
    assert torch.equal(found[[4, 0, 2]], jitter_color(image[[4, 0, 2]], change).float())
    assert torch.equal(augment_image(image, change, Bands(5)), image.float())


@settings(deadline=None)
@given(scale=st.floats(1e-3, 1e4))
def test_colors_of_floats_change_on_any_scale_and_without_limits(scale):
    image = torch.from_numpy(noise(np.uint8, 3, 8, 8)).permute(2, 0, 1).double()
    change = params((8, 8), brightness=1.3, contrast=0.9, saturation=1.1, hue=0.03)
    unit, scaled = jitter_color(image.float(), change), jitter_color((image * scale).float(), change)
    assert torch.allclose(scaled / scale, unit, rtol=1e-3, atol=1e-2)
    inside = (unit > 1) & (unit < 254)
    assert unit.max() > 255 and (unit - jitter_color(image.byte(), change))[inside].abs().max() <= 0.51


def test_pixels_without_data_neither_spread_nor_change_others():
    values = torch.rand(3, 40, 40) + 1
    gaps = values.clone()
    gaps[:, 10:20, 10:20] = torch.nan
    found, plain = resize_with_gaps(gaps, (20, 20)), resize_with_gaps(values, (20, 20))
    assert found[:, 6:9, 6:9].isnan().all() and not found[:, :4].isnan().any()
    far = torch.ones(20, 20, dtype=torch.bool)
    far[3:12, 3:12] = False
    assert torch.equal(found[:, far], plain[:, far])
    assert ((found >= 1) & (found <= 2) | found.isnan()).all()  # a mean of pixels with data
    change = params((40, 40), out=(50, 60), contrast=0.5)
    padded = augment_image(gaps, change, Bands(3, None, (0, 1, 2)))
    assert padded.shape == (3, 50, 60) and padded[:, 40:].isnan().all() and padded[:, :, 40:].isnan().all()
    assert torch.isfinite(padded[:, :10, :40]).all()


def test_pictures_stretch_bands_from_the_2nd_to_the_98th_percentile():
    image = noise(np.float32, 5, 30, 30)
    image[0, 0] = np.nan
    shown = shown_as_rgb(image, (4, 1, 0))
    assert shown.shape == (30, 30, 3) and shown.dtype == np.uint8 and not shown[0, 0].any()
    red = image[..., 4]
    low, high = np.nanpercentile(red, [2, 98])
    expected = np.clip((red - low) / (high - low) * 255, 0, 255)
    assert np.abs(shown[..., 0].astype(float) - expected)[1:].max() <= 0.51
    gray = shown_as_rgb(image, ())
    assert (gray[..., 0] == gray[..., 1]).all() and (gray[..., 0] == gray[..., 2]).all()
    assert not shown_as_rgb(np.full((4, 4, 2), np.nan, np.float32), ()).any()
    assert not shown_as_rgb(np.full((4, 4, 2), 7, np.uint8), ()).any()


def test_bytes_of_an_image_without_a_name_may_be_tiff():
    image = noise(np.uint16, 5)
    file = io.BytesIO()
    tifffile.imwrite(file, image, planarconfig="contig", photometric="minisblack")
    assert np.array_equal(read_bands(Path("rows/00000001/image"), file.getvalue(), channels=5), image)


@pytest.mark.parametrize(
    ("dtype", "nodata"), [("int32", -(2**31)), ("uint32", 2**32 - 1), ("float64", -1.7976931348623157e308)]
)
def test_values_for_no_data_that_float32_does_not_hold(tmp_path, dtype, nodata):
    array = np.arange(24, dtype=dtype).reshape(4, 3, 2)
    array[0, 0] = nodata
    np.save(tmp_path / "a.npy", array)
    found = read_bands(tmp_path / "a.npy", channels=2, nodata=nodata)
    assert np.isnan(found[0, 0]).all()
    np.testing.assert_array_equal(found.reshape(-1, 2)[1:], array.reshape(-1, 2)[1:])
    with pytest.raises(DataError, match="float32"):
        read_bands(tmp_path / "a.npy", channels=2)
    array[1, 1] = 2**24 + 1 if dtype != "float64" else 1e300
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match="float32"):
        read_bands(tmp_path / "a.npy", channels=2, nodata=nodata)
