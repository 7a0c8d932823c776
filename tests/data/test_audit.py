from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from seghiero_core.data import audit as audit_module
from seghiero_core.data import facts as facts_module
from seghiero_core.data.audit import audit
from seghiero_core.data.images import read_image, read_mask
from seghiero_core.data.samples import find_samples
from seghiero_core.errors import DataError
from seghiero_core.hierarchy.tree import Hierarchy
from support.exif import save_turned


def valid_mask(rng, shape=(20, 30)):
    return rng.choice(np.array([0, 2, 5, 9, 255], dtype=np.uint8), shape)


def fill(folders, count=6):
    rng = np.random.default_rng(1)
    for i in range(count):
        folders.add(f"{i}", valid_mask(rng))
    return find_samples(folders)


def test_counts_equal_brute_force(folders, ragged, monkeypatch):
    monkeypatch.setattr(facts_module, "PIXELS_PER_CHUNK", 97)  # so that counting in parts is tested too
    rng = np.random.default_rng(0)
    masks = [valid_mask(rng), valid_mask(rng, (7, 5)), np.full((20, 30), 300, dtype=np.uint16)]
    for i, mask in enumerate(masks):
        folders.add(f"{i}", mask)
    facts = audit(find_samples(folders), ragged)
    everything = np.concatenate([mask.ravel().astype(int) for mask in masks])
    for value, name in {0: "sky", 2: "boots", 5: "flats", 9: "shoes", 300: "hat"}.items():
        assert facts.pixels[ragged.index_of(name)] == (everything == value).sum()
    assert facts.pixels[ragged.index_of("clothes")] == 0  # pixels count where they are labelled, not above
    assert facts.ignored == (everything == 255).sum()
    assert (len(facts.samples), facts.decoded, facts.sizes) == (3, 3, {(20, 30): 2, (7, 5): 1})
    assert facts.pixels.dtype == np.int64


def test_32_bit_masks_are_counted_and_their_unknown_values_named(folders, ragged, monkeypatch):
    monkeypatch.setattr(facts_module, "PIXELS_PER_CHUNK", 7)
    values = np.array([[0, 0, 5, 300, 255], [9, 9, 9, 255, 2]], dtype=np.int32)
    folders.add("a", values.astype(np.uint16))
    (sample,) = find_samples(folders)
    path = sample.mask.rename(sample.mask.with_suffix(".tif"))
    Image.fromarray(values).save(path)
    facts = audit(find_samples(folders), ragged)
    assert facts.pixels[ragged.index_of("shoes")] == 3 and facts.pixels[ragged.index_of("hat")] == 1
    assert facts.ignored == 2 and facts.pixels.sum() == 8
    values[0, :3], values[1, 3:] = -1, 70000
    Image.fromarray(values).save(path)
    with pytest.raises(DataError, match=r"-1 \(3 px\), 70000 \(2 px\)"):
        audit(find_samples(folders), ragged)


def test_every_fault_is_found_in_one_message(folders, ragged):
    samples = fill(folders, 8)
    rng = np.random.default_rng(2)
    unknown = valid_mask(rng)
    unknown[0, :7], unknown[1, :3] = 17, 77
    Image.fromarray(unknown).save(samples[1].mask)
    Image.fromarray(valid_mask(rng, (20, 31))).save(samples[2].mask)
    Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8)).save(samples[3].mask)
    samples[4].mask.write_bytes(b"")
    samples[5].image.write_bytes(samples[5].image.read_bytes()[:400])
    samples[6].image.unlink()
    Image.fromarray(np.zeros((20, 30), dtype=np.int32)).save(samples[7].image, format="TIFF")
    with pytest.raises(DataError) as info:
        audit(samples, ragged)
    lines = str(info.value).splitlines()
    assert info.value.exit_code == 3 and len(lines) == 6
    assert f"{samples[2].mask} is 20x31 px (HxW), its image {samples[2].image} is 20x30" in lines[0]
    assert "mode RGB" in lines[1] and str(samples[3].mask) in lines[1]
    assert lines[2].startswith("2 files can't be read: masks/4.png (cannot identify image file), images/5.png (")
    assert f"{samples[6].image} no longer exists" in lines[3]
    assert f"{samples[7].image} has 32-bit pixels" in lines[4]
    assert f"{samples[1].mask} has values that are not labels: 17 (7 px), 77 (3 px)." in lines[5]


def test_truncated_jpeg_is_found(folders, ragged):
    folders.add("a", np.zeros((200, 300), dtype=np.uint8), extension="jpg")
    (sample,) = find_samples(folders)
    whole = sample.image.read_bytes()
    audit([sample], ragged)
    sample.image.write_bytes(whole[: len(whole) * 9 // 10])
    with pytest.raises(DataError, match=r"a\.jpg can't be read \(image file is truncated"):
        audit([sample], ragged)


def spoil_file(sample):
    sample.mask.write_bytes(b"no")


def spoil_size(sample):
    Image.fromarray(np.zeros((5, 6), dtype=np.uint8)).save(sample.mask)


def spoil_mode(sample):
    Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8)).save(sample.mask)


def spoil_format(sample):
    Image.fromarray(np.zeros((20, 30), dtype=np.uint8)).save(sample.mask, format="JPEG")


def spoil_value(sample):
    Image.fromarray(np.full((20, 30), 17, dtype=np.uint8)).save(sample.mask)


def spoil_image(sample):
    Image.fromarray(np.zeros((20, 30), dtype=np.float32)).save(sample.image, format="TIFF")


def spoil_pair(sample):
    sample.mask.unlink()


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (spoil_file, "files can't be read: 1.png (cannot identify image file), 10.png"),
        (spoil_size, "masks differ in size from their images: 1.png (5x6 px (HxW), image 20x30), 10.png"),
        (spoil_mode, "masks have several channels or floating-point pixels: 1.png (mode RGB), 10.png"),
        (spoil_format, "masks are compressed as JPEG, which alters label values: 1.png, 10.png, 11.png and 10 more in"),
        (spoil_value, "masks have values that are not labels: 17 (7800 px); 1.png, 10.png, 11.png and 10 more in"),
        (spoil_image, "images have floating-point pixels, whose range is unknown: 1.png, 10.png, 11.png and 10 more"),
        (spoil_pair, "files no longer exist: 1.png, 10.png, 11.png and 10 more in"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_one_fault_of_many_files_is_one_line(folders, ragged, spoil, text):
    samples = fill(folders, 14)
    for sample in samples[1:]:
        spoil(sample)
    with pytest.raises(DataError) as info:
        audit(samples, ragged)
    (line,) = str(info.value).splitlines()
    assert line.startswith(f"13 {text}"), line


def turned(found):
    return tuple(sample.image for sample, facts in found.found() if facts.turned)


def peaks_of(found):
    return {sample.image: facts.peak for sample, facts in found.found() if facts.peak is not None}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_image_and_mask_with_one_orientation_fit(folders, ragged, orientation):
    mask = valid_mask(np.random.default_rng(0))
    folders.add("a", mask)
    (sample,) = find_samples(folders)
    save_turned(np.stack([mask] * 3, axis=2), sample.image, orientation)
    save_turned(mask, sample.mask, orientation)
    found = audit([sample], ragged)
    assert found.sizes == {(20, 30): 1} and turned(found) == ()
    assert np.array_equal(read_image(sample.image)[..., 0], read_mask(sample.mask))


@pytest.mark.parametrize("check", ["full", "fast"])
@pytest.mark.parametrize("shape", [(20, 30), (20, 20)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_that_differ_are_recorded_where_the_sizes_fit_either_way(
    folders, ragged, orientation, shape, check
):
    mask = valid_mask(np.random.default_rng(0), shape)
    folders.add("a", mask)
    (sample,) = find_samples(folders)
    save_turned(np.stack([mask] * 3, axis=2), sample.image, orientation)
    found = audit([sample], ragged, check=check)
    is_decided = orientation == 1 or (orientation > 4 and shape == (20, 30))  # as of a phone's upright photo
    assert turned(found) == (() if is_decided else (sample.image,))
    save_turned(np.ascontiguousarray(mask.T if orientation > 4 else mask), sample.mask, 1)
    if orientation > 4 and shape == (20, 30):
        with pytest.raises(DataError, match="EXIF orientation rotates one of the two by a quarter turn"):
            audit([sample], ragged, check=check)


def test_the_greatest_values_of_16_bit_images_are_recorded(folders, ragged):
    samples = fill(folders, 3)
    peaks = {sample.image: peak for sample, peak in zip(samples, (255, 256, 0), strict=True)}
    for path, brightest in peaks.items():
        Image.fromarray(np.full((20, 30), brightest, dtype=np.uint16)).save(path)
    assert peaks_of(audit(samples, ragged)) == peaks


def test_quarter_turns_that_differ_are_recorded(folders, ragged):
    mask = valid_mask(np.random.default_rng(0))
    folders.add("a", mask)
    (sample,) = find_samples(folders)
    save_turned(np.stack([mask] * 3, axis=2), sample.image, 6)
    save_turned(mask, sample.mask, 8)
    assert turned(audit([sample], ragged)) == (sample.image,)


def test_big_endian_16_bit_images(folders, ragged):
    folders.add("a", valid_mask(np.random.default_rng(0)))
    folders.add("b", valid_mask(np.random.default_rng(0)))
    for name, brightest in (("a", 60_000), ("b", 200)):
        (folders.images / f"{name}.png").unlink()
        pixels = np.full((20, 30), brightest, dtype=">u2").tobytes()
        Image.frombytes("I;16B", (30, 20), pixels).save(folders.images / f"{name}.tif")
    assert peaks_of(audit(find_samples(folders), ragged)) == {
        folders.images / "a.tif": 60_000,
        folders.images / "b.tif": 200,
    }


def test_values_that_start_at_1_are_recognized(folders):
    flat = Hierarchy.from_config({"labels": ["no", "road", "car"]})
    for i in range(2):
        folders.add(f"{i}", np.array([[1, 2], [3, 3]], dtype=np.uint8))
    with pytest.raises(DataError) as info:
        audit(find_samples(folders), flat)
    assert "2 masks have values that are not labels: 3 (4 px); 0.png, 1.png in " in str(info.value)
    assert "The values start at 1, the labels at 0: write labels: {1: 'no', 2: road, 3: car}." in str(info.value)
    folders.add("2", np.array([[0, 0]], dtype=np.uint8))
    with pytest.raises(DataError) as info:
        audit(find_samples(folders), flat)
    assert "If 0 means unlabeled, write labels: {1: 'no', 2: road, 3: car} and ignore: 0." in str(info.value)


def test_many_unknown_values_are_no_labels_that_were_forgotten(folders, ragged):
    folders.add("a", np.arange(200, dtype=np.uint8).reshape(10, 20))
    with pytest.raises(DataError, match="So many different values may come from JPEG compression.*Otherwise add them"):
        audit(find_samples(folders), ragged)


def test_swapped_folders_are_recognized(folders, ragged):
    samples = fill(folders, 5)
    for sample in samples:
        picture = sample.image.read_bytes()
        sample.image.write_bytes(sample.mask.read_bytes())
        sample.mask.write_bytes(picture)
    with pytest.raises(DataError, match=r"Swap the folders `images` and `masks` of the split\.$"):
        audit(samples, ragged)


@pytest.mark.parametrize("kind", ["gray", "thermal", "1 bit"])
def test_color_masks_of_gray_images_are_not_swapped(folders, ragged, kind):
    rng = np.random.default_rng(0)
    samples = fill(folders, 3)
    for sample in samples:
        image = rng.integers(0, {"gray": 256, "thermal": 40, "1 bit": 2}[kind], (20, 30), dtype=np.uint8)
        Image.fromarray(image.astype(bool) if kind == "1 bit" else image).save(sample.image)
        colors = [0, 200] if kind == "gray" else range(256)  # otherwise antialiased, which makes many colors
        Image.fromarray(rng.choice(np.array(colors, dtype=np.uint8), (20, 30, 3))).save(sample.mask)
    if kind == "1 bit":
        ragged = Hierarchy.from_config({"labels": ["paper", "ink"]})
    with pytest.raises(DataError, match="masks have several channels"):
        audit(samples, ragged)


def test_fast_check_reads_all_headers_and_decodes_some(folders, ragged, monkeypatch):
    monkeypatch.setattr(audit_module, "DECODED_BY_FAST_CHECK", 2)
    samples = fill(folders, 8)  # decodes 0 and 4
    unknown = np.full((20, 30), 17, dtype=np.uint8)
    Image.fromarray(unknown).save(samples[1].mask)
    facts = audit(samples, ragged, check="fast")
    assert facts.decoded == 2 and len(facts.samples) == 8 and facts.pixels.sum() + facts.ignored == 2 * 600
    Image.fromarray(unknown).save(samples[4].mask)
    with pytest.raises(DataError, match=r"17 \(600 px\)"):
        audit(samples, ragged, check="fast")
    Image.fromarray(np.zeros((5, 5), dtype=np.uint8)).save(samples[3].mask)
    with pytest.raises(DataError, match=r"5x5 px"):
        audit(samples, ragged, check="fast")


def test_progress_is_reported(folders, ragged):
    reported = []
    audit(fill(folders, 3), ragged, on_progress=lambda done, total: reported.append((done, total)))
    assert reported == [(1, 3), (2, 3), (3, 3)]


def test_camvid_passes(camvid, camvid_hierarchy):
    from types import SimpleNamespace

    split = SimpleNamespace(images=camvid / "val" / "images", masks=camvid / "val" / "masks")
    facts = audit(find_samples(split), camvid_hierarchy)
    assert len(facts.samples) == 101 and facts.sizes == {(360, 480): 101}
    assert facts.pixels[: len(camvid_hierarchy.leaves)].min() > 0
    assert facts.pixels.sum() + facts.ignored == 101 * 360 * 480
