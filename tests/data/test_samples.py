from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from seghiero_core.data.samples import find_samples
from seghiero_core.errors import DataError

MASK = np.zeros((2, 3), dtype=np.uint8)


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_pairs_by_relative_path_and_stem_sorted(folders):
    touch(folders.images, "b.JPG", "a.png", "town/a.jpeg", "town/deep/z.tif", "notes.txt", ".hidden.jpg", ".git/a.jpg")
    touch(folders.masks, "a.png", "b.png", "town/a.tiff", "town/deep/z.bmp", "extra.png")
    pairs = [
        (s.image.relative_to(folders.images).as_posix(), s.mask.relative_to(folders.masks).as_posix())
        for s in find_samples(folders)
    ]
    assert pairs == [
        ("a.png", "a.png"),
        ("b.JPG", "b.png"),
        ("town/a.jpeg", "town/a.tiff"),
        ("town/deep/z.tif", "town/deep/z.bmp"),
    ]


def test_suffixes_select_and_pair(tmp_path):
    """The layout of Cityscapes, where several files stand beside each mask, here even in one folder."""
    touch(tmp_path, *(f"x/a{end}.png" for end in ("_leftImg8bit", "_gtFine_labelIds", "_gtFine_color")))
    split = SimpleNamespace(images=tmp_path, masks=tmp_path)
    (sample,) = find_samples(split, image_suffix="_leftImg8bit", mask_suffix="_gtFine_labelIds")
    assert (sample.image.name, sample.mask.name) == ("a_leftImg8bit.png", "a_gtFine_labelIds.png")


def test_links_are_followed_and_may_loop(tmp_path, folders):
    touch(tmp_path / "elsewhere", "a.jpg")
    (folders.images / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "elsewhere")
    touch(folders.masks, "linked/a.png")
    assert [s.image.name for s in find_samples(folders)] == ["a.jpg"]


@pytest.mark.parametrize("suffix", ["", "_mask"])
def test_gif_masks_beside_their_images(tmp_path, suffix):
    """Carvana publishes its masks as GIF; images are of other types, so that one folder can hold both."""
    touch(tmp_path, "0.jpg", f"0{suffix}.gif", "1.jpg", f"1{suffix}.gif", "preview.gif")
    pairs = find_samples(SimpleNamespace(images=tmp_path, masks=tmp_path), mask_suffix=suffix)
    expected = [("0.jpg", f"0{suffix}.gif"), ("1.jpg", f"1{suffix}.gif")]
    assert [(pair.image.name, pair.mask.name) for pair in pairs] == expected


def test_missing_folder(tmp_path, folders):
    split = SimpleNamespace(images=folders.images, masks=tmp_path / "nowhere")
    touch(folders.images, "a.jpg")
    both = r"Write `val: \{images: FOLDER, masks: FOLDER\}`, or `val: FOLDER`.*relative to dataset\.root"
    with pytest.raises(DataError, match=rf"dataset\.val\.masks: .*nowhere does not exist\. {both}") as info:
        find_samples(split, key="dataset.val")
    assert info.value.exit_code == 3


def test_a_file_where_a_folder_should_be(tmp_path, folders):
    touch(tmp_path, "list.txt")
    with pytest.raises(DataError, match=r"list\.txt is a file, not a folder"):
        find_samples(SimpleNamespace(images=tmp_path / "list.txt", masks=folders.masks))


def test_empty_folder(folders):
    with pytest.raises(DataError, match=r"dataset\.train\.images: .*images has no image\. Expected"):
        find_samples(folders)
    touch(folders.images, "a.jpg")
    touch(folders.masks, "a.webp")
    with pytest.raises(DataError, match=r"masks has no mask \(files skipped: 1\)"):
        find_samples(folders)


def test_wrong_suffix(folders):
    touch(folders.images, "a.jpg")
    with pytest.raises(DataError, match=r"has no image with '_left' before the extension \(files skipped: 1\)"):
        find_samples(folders, image_suffix="_left")


def test_image_without_mask_names_the_first_and_counts(folders):
    touch(folders.images, *(f"{i}.jpg" for i in range(6)))
    touch(folders.masks, "5_m.png")
    with pytest.raises(DataError) as info:
        find_samples(folders, mask_suffix="_m")
    message = str(info.value)
    assert message.startswith("5 of 6 images have no mask: ")
    assert all(str(folders.images / f"{i}.jpg") in message for i in range(3)) and "3.jpg" not in message
    assert "and 2 more" in message and str(folders.masks / "0_m.png") in message


def test_two_files_of_one_stem(folders):
    touch(folders.images, "a.jpg", "a.png")
    with pytest.raises(DataError, match=r"a\.jpg and .*a\.png are both the image of one sample"):
        find_samples(folders)


@pytest.mark.parametrize("others", [(), ("b.png",)], ids=["only JPEG", "one PNG"])
def test_jpeg_masks_are_refused(folders, others):
    touch(folders.images, "a.jpg", "b.jpg")
    touch(folders.masks, "a_m.JPG", *(name.replace(".", "_m.") for name in others))
    expected = r"dataset\.train\.masks: a_m\.JPG in .*: JPEG alters label values, so masks can't be JPEG files\. Export"
    with pytest.raises(DataError, match=expected):
        find_samples(folders, mask_suffix="_m")


def test_jpeg_files_that_are_no_masks(tmp_path):
    """Images in the folder of masks or below it, and previews."""
    touch(tmp_path, "images/x.jpg", "images/y.jpg", "x.png", "preview/y.jpg")
    with pytest.raises(DataError, match=r"1 of 2 images have no mask"):
        find_samples(SimpleNamespace(images=tmp_path / "images", masks=tmp_path))
    with pytest.raises(DataError, match=r"images has no mask \(files skipped: 2\)"):
        find_samples(SimpleNamespace(images=tmp_path / "images", masks=tmp_path / "images"))


def test_jpeg_pictures_in_the_folder_of_masks_mean_swapped_folders(folders):
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 3, (20, 30), dtype=np.uint8)).save(folders.images / f"{i}.png")
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(folders.masks / f"{i}.jpg")
    with pytest.raises(DataError, match=r"dataset\.val: the files in .*images look like masks, those in .*masks like"):
        find_samples(folders, key="dataset.val")
