from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from seghiero_core.data.images import check_values, read_image, read_mask, to_target
from seghiero_core.data.orientation import exif_orientation, upright_size
from seghiero_core.errors import DataError
from seghiero_core.hierarchy.tree import IGNORE_INDEX, Hierarchy
from support.exif import move_after_pixels, save_turned

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
GRAY = RNG.integers(0, 256, (6, 9), dtype=np.uint8)


def saved(tmp_path, image, name="a.png", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def test_rgb_and_rgba(tmp_path):
    alpha = np.dstack([RGB, GRAY])
    assert np.array_equal(read_image(saved(tmp_path, Image.fromarray(RGB))), RGB)
    assert np.array_equal(read_image(saved(tmp_path, Image.fromarray(alpha))), RGB)


def test_gray_and_16_bit_gray(tmp_path):
    expected = np.repeat(GRAY[..., None], 3, axis=2)
    wide = GRAY.astype(np.uint16) * 257
    assert np.array_equal(read_image(saved(tmp_path, Image.fromarray(GRAY))), expected)
    assert np.array_equal(read_image(saved(tmp_path, Image.fromarray(wide))), expected)
    assert np.array_equal(read_image(saved(tmp_path, Image.fromarray(wide), "a.tif")), expected)
    (tmp_path / "a.pgm").write_bytes(b"P5 9 6 65535\n" + wide.astype(">u2").tobytes())
    assert np.array_equal(read_image(tmp_path / "a.pgm"), expected)  # Pillow opens it as a 32-bit image
    big_endian = Image.frombytes("I;16B", (9, 6), wide.astype(">u2").tobytes())
    assert np.array_equal(read_image(saved(tmp_path, big_endian, "b.tif")), expected)


@pytest.mark.parametrize("options", [{}, {"transparency": bytes([0, 128, 255])}], ids=["opaque", "transparent"])
def test_palette(tmp_path, options):
    indices = (GRAY % 3).astype(np.uint8)
    colors = [(250, 10, 20), (30, 240, 50), (70, 80, 230)]
    image = Image.fromarray(indices)
    image.putpalette([c for color in colors for c in color])
    path = saved(tmp_path, image, **options)
    assert np.array_equal(read_image(path), np.array(colors, dtype=np.uint8)[indices])
    assert np.array_equal(read_mask(path), indices)


def test_cmyk(tmp_path):
    path = saved(tmp_path, Image.new("CMYK", (9, 6), (0, 255, 255, 0)), "a.jpg", quality=100)
    assert np.abs(read_image(path).astype(int) - [255, 0, 0]).max() < 8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_image_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, Image.fromarray(RGB), exif=exif)
    turned = {  # what a viewer does, EXIF 2.3 table of tag 0x0112
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.transpose(1, 0, 2),
        6: np.rot90(RGB, -1),
        7: np.rot90(RGB, 2).transpose(1, 0, 2),
        8: np.rot90(RGB, 1),
    }
    assert np.array_equal(read_image(path), turned[orientation])


@pytest.mark.parametrize("extension", ["png", "tif", "jpg", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_of_every_format(tmp_path, orientation, extension):
    gray = np.repeat(np.linspace(0, 255, 16 * 24).astype(np.uint8).reshape(16, 24)[..., None], 3, axis=2)
    path = tmp_path / f"a.{extension}"
    save_turned(gray, path, orientation, **({} if extension in ("png", "tif") else {"quality": 95}))
    assert np.abs(read_image(path).astype(int) - gray).max() < 12
    with Image.open(path) as image:
        assert upright_size(image) == (16, 24) and exif_orientation(image) == orientation


@pytest.mark.parametrize(
    ("mode", "extension", "options"),
    [(mode, "png", {}) for mode in ("1", "L", "P", "I;16")]
    + [(mode, "tif", {}) for mode in ("1", "L", "P", "I;16", "I;16B", "I")]
    + [(mode, "tif", {"compression": "tiff_lzw"}) for mode in ("1", "L", "P", "I;16", "I;16B", "I")],
)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_mask_upright(tmp_path, orientation, mode, extension, options):
    values = GRAY.astype(np.int32) * (257 if mode.startswith("I") else 1)
    if mode == "1":
        image = Image.fromarray(GRAY > 99)
        values = (GRAY > 99).astype(np.int32)
    elif mode == "I;16B":
        image = Image.frombytes(mode, (9, 6), values.astype(">u2").tobytes())
    else:
        image = Image.fromarray(values.astype({"I": np.int32, "I;16": np.uint16}.get(mode, np.uint8)))
    if mode == "P":
        image.putpalette(bytes(range(256)) * 3)
    path = tmp_path / f"a.{extension}"
    save_turned(image, path, orientation, **options)
    with Image.open(path) as stored:
        assert upright_size(stored) == (6, 9) and exif_orientation(stored) == orientation
    assert np.array_equal(read_mask(path), values)


def test_the_orientation_of_a_png_is_read_without_decoding_it(tmp_path, monkeypatch):
    save_turned(RGB, tmp_path / "before.png", 6)
    save_turned(RGB, tmp_path / "after.png", 6)
    move_after_pixels(tmp_path / "after.png")
    assert np.array_equal(read_image(tmp_path / "after.png"), RGB)
    Image.fromarray(RGB).save(tmp_path / "none.png")
    with Image.open(tmp_path / "after.png") as image:
        assert exif_orientation(image) == 6 and upright_size(image) == (6, 9)
    monkeypatch.setattr(PngImageFile, "load", lambda self: pytest.fail("decoded"))
    for name, orientation in (("before.png", 6), ("none.png", 1)):
        with Image.open(tmp_path / name) as image:
            assert exif_orientation(image) == orientation


@pytest.mark.parametrize(
    ("keyword", "text", "orientation"),
    [
        ("date:create", "2020", 1),
        (
            "Raw profile type exif",
            "\nexif\n26\n" + "4d4d002a00000008" + "0001" + "011200030000000100060000" + "00000000",
            6,
        ),
        ("XML:com.adobe.xmp", '<rdf:Description tiff:Orientation="6"/>', 6),
    ],
    ids=["date", "exif", "xmp"],
)
def test_of_text_after_the_pixels_of_a_png_only_orientations_are_decoded(
    tmp_path, monkeypatch, keyword, text, orientation
):
    info = PngInfo()
    info.add_text(keyword, text)
    path = saved(tmp_path, Image.fromarray(RGB), pnginfo=info)
    move_after_pixels(path, b"tEXt")
    decoded = []
    load = PngImageFile.load
    monkeypatch.setattr(PngImageFile, "load", lambda self: decoded.append(self.filename) or load(self))
    with Image.open(path) as image:
        assert exif_orientation(image) == orientation
    assert bool(decoded) == (orientation != 1)


@pytest.mark.parametrize(("dtype", "pixels"), [(np.float32, "floating-point"), (np.int32, "32-bit")])
def test_images_of_unknown_range_are_refused(tmp_path, dtype, pixels):
    path = saved(tmp_path, Image.fromarray(GRAY.astype(dtype)), "a.tif")
    with pytest.raises(DataError, match=rf"a\.tif has {pixels} pixels, whose range is unknown\. Convert it to 8 bits"):
        read_image(path)


def test_signed_16_bit_tiffs_are_read_although_pillow_opens_them_as_32_bit_images(tmp_path):
    wide = GRAY.astype(np.uint16) * 128
    signed = {339: 2}  # SampleFormat
    path = saved(tmp_path, Image.frombytes("I;16", (9, 6), wide.astype("<u2").tobytes()), "a.tif", tiffinfo=signed)
    with Image.open(path) as image:
        assert image.mode == "I"
    assert np.array_equal(read_image(path), np.repeat(GRAY[..., None] // 2, 3, axis=2))


@pytest.mark.parametrize(("mode", "extension"), [("1", "png"), ("LA", "png"), ("LAB", "tif"), ("YCbCr", "tif")])
def test_other_modes_become_rgb(tmp_path, mode, extension):
    lab_white, white = (255, 128, 128), 1 if mode == "1" else 255
    color = {"LA": (255, 7), "LAB": lab_white, "YCbCr": lab_white}.get(mode, white)
    path = saved(tmp_path, Image.new(mode, (9, 6), color), f"a.{extension}")
    with Image.open(path) as image:
        assert image.mode == mode
    assert np.abs(read_image(path).astype(int) - 255).max() <= 1


@pytest.mark.parametrize("extension", ["png", "tif"])
def test_a_mask_compressed_as_jpeg_is_refused(tmp_path, extension):
    options = {"format": "JPEG"} if extension == "png" else {"compression": "jpeg"}
    path = saved(tmp_path, Image.fromarray(GRAY), f"a.{extension}", **options)
    with pytest.raises(DataError, match=rf"a\.{extension} is compressed as JPEG, which alters label values\. Export"):
        read_mask(path)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, bool])
def test_mask_values_survive(tmp_path, dtype):
    values = (GRAY > 99) if dtype is bool else (GRAY.astype(np.int64) * (1 if dtype is np.uint8 else 257)).astype(dtype)
    mask = read_mask(saved(tmp_path, Image.fromarray(values), "a.tif"))
    assert mask.dtype == (np.uint8 if dtype is bool else dtype) and np.array_equal(mask, values)


def test_big_endian_mask(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 2 1 65535\n" + bytes([1, 2, 0, 3]))
    assert read_mask(tmp_path / "a.pgm").tolist() == [[258, 3]]


@pytest.mark.parametrize("shape", [(6, 9, 3), (6, 9, 4), (6, 9, 2)])
def test_color_mask_is_refused(tmp_path, shape):
    path = saved(tmp_path, Image.fromarray(np.zeros(shape, dtype=np.uint8)))
    with pytest.raises(DataError, match=r"a\.png has the channels .*one channel with the label value"):
        read_mask(path)


@pytest.mark.parametrize(
    "content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + bytes(30)], ids=["empty", "text", "png"]
)
def test_damaged_file_is_named(tmp_path, content):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    for read in (read_image, read_mask):
        with pytest.raises(DataError, match=r"a\.png can't be read"):
            read(path)


def test_truncated_jpeg(tmp_path):
    path = saved(tmp_path, Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), "a.jpg")
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(DataError, match=r"a\.jpg can't be read \(image file is truncated"):
        read_image(path)


def test_vanished_file(tmp_path):
    with pytest.raises(DataError, match=r"gone\.png no longer exists"):
        read_image(tmp_path / "gone.png")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_target_equals_a_dictionary(tmp_path, ragged, dtype):
    values = [0, 2, 5, 9, 255] + ([300] if dtype is not np.uint8 else [])
    known = {0: "sky", 2: "boots", 5: "flats", 9: "shoes", 300: "hat"}
    expected = [ragged.index_of(known[value]) if value in known else IGNORE_INDEX for value in values]
    path = saved(tmp_path, Image.fromarray(np.array([values], dtype=dtype)), "a.tif")
    target = to_target(read_mask(path), path, ragged)
    assert target.dtype == np.int64 and target.tolist() == [expected]


@pytest.mark.parametrize(
    ("dtype", "value"),
    [(np.uint8, 1), (np.uint8, 254), (np.uint16, 301), (np.uint16, 65535)]
    + [(np.int32, -1), (np.int32, 65536), (np.int32, 2**31 - 1)],
)
def test_unknown_label_is_named(tmp_path, ragged, dtype, value):
    path = saved(tmp_path, Image.fromarray(np.array([[0, value, 255, value]], dtype=dtype)), "a.tif")
    with pytest.raises(DataError, match=rf"a\.tif has values that are not labels: {value} \(2 px\)\. Add them"):
        to_target(read_mask(path), path, ragged)


def test_a_tiff_that_pillow_cannot_read_is_not_called_damaged(tmp_path):
    path = tmp_path / "a.tif"
    Image.new("RGB", (4, 3)).save(path)
    data = path.read_bytes()
    bits = data.index((258).to_bytes(2, "little") + (3).to_bytes(2, "little"))  # BitsPerSample: 3 shorts elsewhere
    place = int.from_bytes(data[bits + 8 : bits + 12], "little")
    path.write_bytes(data[:place] + (32).to_bytes(2, "little") * 3 + data[place + 6 :])
    with pytest.raises(DataError, match="this kind of TIFF, such as float or 4-band pixels; save it as 8-bit RGB"):
        read_image(path)
    path.write_bytes(b"not a TIFF at all")
    with pytest.raises(DataError, match="cannot identify image file"):
        read_image(path)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
@pytest.mark.parametrize("values", [range(19), range(1, 4), [0, 5, 6, 254], range(0, 60, 2), [7]])
def test_values_are_checked_as_they_are_looked_up(dtype, values):
    hierarchy = Hierarchy.from_config({"labels": {value: f"class{value}" for value in values}})
    largest = min(300, np.iinfo(dtype).max)
    for value in range(-2 if np.iinfo(dtype).min else 0, largest + 1):
        mask = np.array([[values[0], 255, value]], dtype=dtype)
        found = []
        for check in (check_values, to_target):
            try:
                check(mask, Path("a.png"), hierarchy)
                found.append("")
            except DataError as error:
                found.append(str(error))
        assert found[0] == found[1] and bool(found[0]) == (value not in (*values, 255))
