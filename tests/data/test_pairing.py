"""Lists of images: `list` of a folder."""

from __future__ import annotations

import numpy as np
import pytest

from seghiero_core.data.pairing import find_pairs
from seghiero_core.errors import DataError


@pytest.fixture
def town(folders):
    """Three pairs with suffixes, and an image without a mask."""
    for name in ("a_rgb", "town/b_rgb", "town/c_rgb", "town/d_rgb"):
        folders.add(name, np.zeros((4, 4), np.uint8), extension="jpg")
    for path in list(folders.masks.rglob("*_rgb.png")):
        path.rename(path.with_name(path.name.replace("_rgb", "_gt")))
    (folders.masks / "town/d_gt.png").unlink()
    return folders


def pairs(town, text: str | bytes) -> list[str]:
    listed = town.images.parent / "list.txt"
    listed.write_bytes(text.encode() if isinstance(text, str) else text)
    found = find_pairs("dataset.train", town.images, town.masks, "_rgb", "_gt", listed)
    assert all(pair.mask.name == pair.image.name.replace("_rgb.jpg", "_gt.png") for pair in found)
    return [pair.name for pair in found]


@pytest.mark.parametrize("text", ["town/c_rgb.jpg\na_rgb.jpg\n", "town/c_rgb\r\na_rgb", "\n town/c \n\na\n"])
def test_names_have_an_extension_and_suffix_or_not(town, text):
    assert pairs(town, text) == ["a_rgb.jpg", "town/c_rgb.jpg"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a\nx\ny\n", "list.txt: 2 of 3 lines name no image in .*images: x, y\\. Write a line for each image"),
        ("a_rgb.png\n", "1 of 1 lines name no image"),
        ("a\na_rgb.jpg\n", "list.txt names images twice: a\\. Remove the repeated lines"),
        ("\n", "list.txt: the file has no names\\."),
        (b"\xff\xfe", "dataset.train.list: can't read .*list.txt: it is not UTF-8 text"),
        ("town/d\n", "1 of 1 images have no mask: .*d_rgb.jpg"),
    ],
)
def test_lists_that_dont_fit(town, text, words):
    with pytest.raises(DataError, match=words):
        pairs(town, text)


def test_a_list_that_is_missing(town):
    with pytest.raises(DataError, match="dataset.val.list: can't read .*none.txt: No such file or directory"):
        find_pairs("dataset.val", town.images, town.masks, "_rgb", "_gt", town.images / "none.txt")
