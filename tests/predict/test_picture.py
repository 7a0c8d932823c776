"""Every kind of image that can be predicted, and what is not an image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from seghiero_core import load
from seghiero_core.errors import DataError, UsageError
from seghiero_core.predict.picture import open_picture
from support.exif import save_turned
from support.masks import assert_masks_equal


def modes() -> dict[str, Image.Image]:
    rgb = Image.fromarray(np.random.default_rng(2).integers(0, 256, (6, 9, 3), dtype=np.uint8)).resize((45, 30))
    wide = Image.fromarray((np.asarray(rgb.convert("L")).astype(np.uint16) << 8) + 77)
    modes = {"RGB": rgb, "I;16": wide}
    return modes | {mode: rgb.convert(mode) for mode in ("RGBA", "L", "LA", "P", "1", "CMYK")}


@pytest.mark.parametrize("mode", list(modes()))
def test_any_mode_is_read(predict, tiny_run, tmp_path, mode):
    path = tmp_path / ("image.tiff" if mode == "CMYK" else "image.png")
    modes()[mode].save(path)
    assert predict(path)[0] == 0
    rgb = modes()["L" if mode == "I;16" else mode].convert("RGB")
    assert_masks_equal(tmp_path / "out" / "image", load(tiny_run, device="cpu")(np.array(rgb)))


@pytest.mark.parametrize("read_ahead", [1 << 24, 100], ids=["read ahead", "read late"])
@pytest.mark.parametrize("tile", [[], ["--tile", "64", "--overlap", "32"]])
def test_exif_rotation_is_undone(predict, tiny_run, tmp_path, monkeypatch, tile, read_ahead):
    monkeypatch.setattr("seghiero_core.predict.picture.READ_AHEAD_PIXELS", read_ahead)
    image = Image.fromarray(np.random.default_rng(4).integers(0, 256, (7, 11, 3), dtype=np.uint8)).resize((110, 70))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    assert predict(tmp_path / "turned.png", *tile)[0] == 0
    options = {"tile": 64, "overlap": 32} if tile else {}
    upright = np.rot90(np.array(image), -1)
    assert_masks_equal(tmp_path / "out" / "turned", load(tiny_run, device="cpu", **options)(upright))


@pytest.mark.parametrize("read_ahead", [1 << 24, 10], ids=["read ahead", "read late"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_an_uncompressed_gray_tiff(tmp_path, monkeypatch, orientation, read_ahead):
    """Pillow maps such files into memory, with height and width swapped."""
    monkeypatch.setattr("seghiero_core.predict.picture.READ_AHEAD_PIXELS", read_ahead)
    gray = np.random.default_rng(4).integers(0, 256, (7, 11), dtype=np.uint8)
    save_turned(gray, tmp_path / "a.tif", orientation)
    image = Image.open(tmp_path / "a.tif")
    for source in (tmp_path / "a.tif", image):
        picture = open_picture(source)
        assert (picture.height, picture.width) == (7, 11)
        assert np.array_equal(picture.whole(), np.repeat(gray[..., None], 3, axis=2))
    assert image.filename == str(tmp_path / "a.tif")


def test_every_kind_of_image_gives_the_same(tiny_run, photo, tmp_path):
    predict = load(tiny_run, device="cpu")
    Image.fromarray(photo).save(tmp_path / "a.png")
    tensor = torch.from_numpy(photo).permute(2, 0, 1)
    expected = predict(photo).ids
    same = (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(photo), photo.astype(np.float64))
    for image in (*same, tensor, tensor.float()):
        for level, ids in predict(image).ids.items():
            assert np.array_equal(ids, expected[level])
    gray = photo[..., 0]
    assert np.array_equal(predict(gray).ids["leaf"], predict(np.stack([gray] * 3, axis=-1)).ids["leaf"])


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((4, 4, 4), np.uint8), r"H,W,3"),
        (np.zeros((0, 4, 3), np.uint8), "empty"),
        (np.full((4, 4, 3), 0.5), "multiply them by 255"),
        (np.full((4, 4, 3), 300), "0..255"),
        (np.full((4, 4, 3), np.nan), "0..255"),
        (torch.zeros(4, 4, 3), "3,H,W"),
    ],
)
def test_arrays_that_are_not_images(tiny_run, image, words):
    with pytest.raises(UsageError, match=words):
        load(tiny_run)(image)


def test_files_that_are_not_images(tiny_run, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"a\.jpg can't be read"):
        load(tiny_run)(tmp_path / "a.jpg")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "f.tiff")
    with pytest.raises(DataError, match="floating-point"):
        load(tiny_run)(tmp_path / "f.tiff")
    Image.new("RGB", (50, 40)).save(tmp_path / "big.png")
    with pytest.raises(DataError, match="50x40 px, more than the limit of 1999 px"):
        open_picture(tmp_path / "big.png", max_pixels=1999)
