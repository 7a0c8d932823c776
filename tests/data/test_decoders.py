"""imagecodecs beside Pillow: the same pixels, and the same faults."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seghiero_core.data import images as images_module
from seghiero_core.data.decoders import decode_upright
from seghiero_core.data.images import read_image, read_mask
from seghiero_core.errors import DataError

pytest.importorskip("imagecodecs")
RNG = np.random.default_rng(0)
PICTURE = Image.fromarray(RNG.integers(0, 256, (8, 11, 3), dtype=np.uint8)).resize((83, 61), Image.Resampling.BICUBIC)
COMMON = {
    f"{mode} {name}": (mode, options)
    for mode in ("RGB", "L")
    for name, options in {
        "jpeg 4:4:4": {"format": "JPEG", "quality": 95, "subsampling": 0},
        "jpeg 4:2:2": {"format": "JPEG", "quality": 80, "subsampling": 1},
        "jpeg 4:2:0": {"format": "JPEG", "quality": 30, "subsampling": 2, "optimize": True},
        "jpeg restarts": {"format": "JPEG", "restart_marker_rows": 1},
        "png": {"format": "PNG"},
        "png stored": {"format": "PNG", "compress_level": 0},
    }.items()
}
OTHERS = {
    "progressive": ("RGB", {"format": "JPEG", "progressive": True}),
    "CMYK": ("CMYK", {"format": "JPEG"}),
    "alpha": ("RGBA", {"format": "PNG"}),
    "palette": ("P", {"format": "PNG"}),
    "1 bit": ("1", {"format": "PNG"}),
    "animated": ("RGB", {"format": "PNG", "save_all": True, "append_images": [PICTURE.rotate(90)]}),
}


def encoded(mode: str, options: dict) -> bytes:
    file = io.BytesIO()
    PICTURE.convert(mode).save(file, **options)
    return file.getvalue()


def result(read, data: bytes) -> np.ndarray | str:
    try:
        return read(Path("a"), data)
    except DataError as error:
        return str(error)


def by_pillow(monkeypatch, read, data: bytes) -> np.ndarray | str:
    with monkeypatch.context() as patch:
        patch.setattr(images_module, "decode_upright", lambda image: None)
        return result(read, data)


def same(a, b) -> bool:
    if isinstance(a, str) or isinstance(b, str):
        return isinstance(a, str) and isinstance(b, str) and a == b
    return a.dtype == b.dtype and np.array_equal(a, b)


@pytest.mark.parametrize(("mode", "options"), COMMON.values(), ids=COMMON)
def test_common_files_give_the_pixels_of_pillow(mode, options, monkeypatch):
    data = encoded(mode, options)
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(decode_upright(image), np.asarray(image))
    for read in (read_image, read_mask):
        assert same(result(read, data), by_pillow(monkeypatch, read, data))


@pytest.mark.parametrize(("mode", "options"), OTHERS.values(), ids=OTHERS)
def test_other_files_are_left_to_pillow(mode, options):
    with Image.open(io.BytesIO(encoded(mode, options))) as image:
        assert decode_upright(image) is None
        assert np.asarray(image).shape[:2] == (61, 83)  # the file is where it was


def test_turned_and_16_bit_files_are_left_to_pillow():
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(io.BytesIO(encoded("RGB", {"format": "JPEG", "exif": exif}))) as image:
        assert decode_upright(image) is None
    file = io.BytesIO()
    Image.fromarray(RNG.integers(0, 2**16, (6, 9), dtype=np.uint16)).save(file, format="PNG")
    with Image.open(file) as image:
        assert decode_upright(image) is None


@pytest.mark.parametrize("name", ["RGB jpeg 4:2:0", "L jpeg 4:4:4", "RGB png", "L png"])
def test_damaged_files_have_the_faults_that_pillow_finds(name, monkeypatch):
    data = encoded(*COMMON[name])
    rng = np.random.default_rng(1)
    faults = 0
    for number in range(150):
        damaged = bytearray(data)
        if number % 3:
            for position in rng.integers(2, len(data), rng.integers(1, 4)):
                damaged[position] = rng.integers(256)
        else:
            del damaged[rng.integers(2, len(data)) :]
        expected = by_pillow(monkeypatch, read_image, bytes(damaged))
        faults += isinstance(expected, str)
        assert same(result(read_image, bytes(damaged)), expected)
    assert faults > 20


def test_no_damage_of_a_png_goes_unnoticed(monkeypatch):
    """Bytes are put in, changed and cut everywhere; imagecodecs alone would read some of these files without a word."""
    whole = encoded("L", {"format": "PNG"})
    for position in range(8, len(whole), 23):
        for damaged in (
            whole[:position] + bytes([132] * 5) + whole[position:],
            whole[:position] + bytes([whole[position] ^ 255]) + whole[position + 1 :],
            whole[:position],
        ):
            assert same(result(read_mask, damaged), by_pillow(monkeypatch, read_mask, damaged))
