from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from seghiero_core.data import audit as audit_module
from seghiero_core.data.audit import audit
from seghiero_core.data.samples import find_samples
from seghiero_core.errors import DataError


def valid_mask(rng, shape=(20, 30)):
    return rng.choice(np.array([0, 2, 5, 9, 255], dtype=np.uint8), shape)


def fill(folders, count=6):
    rng = np.random.default_rng(1)
    for i in range(count):
        folders.add(f"{i}", valid_mask(rng))
    return find_samples(folders)


def test_counts_equal_brute_force(folders, ragged, monkeypatch):
    monkeypatch.setattr(audit_module, "PIXELS_PER_CHUNK", 97)  # so that counting in parts is tested too
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
    assert (facts.samples, facts.decoded, facts.sizes) == (3, 3, {(20, 30): 2, (7, 5): 1})
    assert facts.pixels.dtype == np.int64


def test_32_bit_masks_are_counted_and_their_unknown_values_named(folders, ragged, monkeypatch):
    monkeypatch.setattr(audit_module, "PIXELS_PER_CHUNK", 7)
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
    with pytest.raises(DataError) as info:
        audit(samples, ragged)
    lines = str(info.value).splitlines()
    assert info.value.exit_code == 3 and len(lines) == 6
    assert f"{samples[1].mask} has values that are not labels: 17 (7 px), 77 (3 px)." in lines[0]
    assert f"{samples[2].mask} is 20x31 px (HxW), its image {samples[2].image} is 20x30" in lines[1]
    assert "mode RGB" in lines[2] and str(samples[3].mask) in lines[2]
    assert f"{samples[4].mask} can't be read" in lines[3]
    assert f"{samples[5].image} can't be read" in lines[4]
    assert f"{samples[6].image} no longer exists" in lines[5]


def test_truncated_jpeg_is_found(folders, ragged):
    folders.add("a", np.zeros((200, 300), dtype=np.uint8), extension="jpg")
    (sample,) = find_samples(folders)
    whole = sample.image.read_bytes()
    audit([sample], ragged)
    sample.image.write_bytes(whole[: len(whole) * 9 // 10])
    with pytest.raises(DataError, match=r"a\.jpg can't be read \(image file is truncated"):
        audit([sample], ragged)


def test_ten_faults_are_shown_and_all_are_counted(folders, ragged):
    samples = fill(folders, 14)
    for sample in samples[1:]:
        sample.mask.write_bytes(b"no")
    with pytest.raises(DataError) as info:
        audit(samples, ragged)
    lines = str(info.value).splitlines()
    assert len(lines) == 11 and lines[-1] == "and 3 more"
    assert [str(s.mask) in line for s, line in zip(samples[1:11], lines, strict=False)] == [True] * 10


def test_exif_turned_image(folders, ragged):
    exif = Image.Exif()
    exif[0x0112] = 6
    folders.add("a", np.zeros((30, 20), dtype=np.uint8), np.zeros((20, 30, 3), dtype=np.uint8))
    (sample,) = find_samples(folders)
    Image.open(sample.image).copy().save(sample.image, exif=exif)
    assert audit([sample], ragged).sizes == {(30, 20): 1}
    Image.fromarray(np.zeros((20, 30), dtype=np.uint8)).save(sample.mask)
    with pytest.raises(DataError, match="EXIF orientation rotates it by a quarter turn"):
        audit([sample], ragged)


def test_fast_check_reads_all_headers_and_decodes_some(folders, ragged, monkeypatch):
    monkeypatch.setattr(audit_module, "DECODED_BY_FAST_CHECK", 2)
    samples = fill(folders, 8)  # decodes 0 and 4
    unknown = np.full((20, 30), 17, dtype=np.uint8)
    Image.fromarray(unknown).save(samples[1].mask)
    facts = audit(samples, ragged, check="fast")
    assert facts.decoded == 2 and facts.samples == 8 and facts.pixels.sum() + facts.ignored == 2 * 600
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
    assert facts.samples == 101 and facts.sizes == {(360, 480): 101}
    assert facts.pixels[: len(camvid_hierarchy.leaves)].min() > 0
    assert facts.pixels.sum() + facts.ignored == 101 * 360 * 480
