from __future__ import annotations

import hashlib
import json
import tarfile

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from seghiero_core.config.loading import load_config
from seghiero_core.data.audit import audit
from seghiero_core.data.samples import split_samples
from seghiero_core.data.shards import expand, pack
from seghiero_core.errors import DataError, UsageError

CLASSES = {"labels": {0: "sky", 2: "road", 300: "car"}}


@pytest.fixture
def cfg(tmp_path):
    """A config of 20 training and 3 validation images of different sizes and formats."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 3)):
        for number in range(count):
            height, width = rng.integers(20, 60, 2)
            extension = (".jpg", ".png")[number % 2]
            image = tmp_path / "data" / split / "images" / ("odd.names" if number % 3 else "") / f"{number}{extension}"
            mask = tmp_path / "data" / split / "masks" / image.parent.name.replace("images", "") / f"{number}.png"
            for path, array in (
                (image, rng.integers(0, 256, (height, width, 3), dtype=np.uint8)),
                (mask, rng.choice(np.array([0, 2, 300], dtype=np.uint16), (height, width))),
            ):
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    path = tmp_path / "cfg.yaml"
    path.write_text(yaml.safe_dump({"dataset": {"root": "data", "train": "train", "val": "val"}, "classes": CLASSES}))
    return path


def as_shards(cfg, **dataset):
    """The config that reads what `pack` wrote."""
    data = {"dataset": {"type": "shards", "root": "shards", **dataset}, "classes": CLASSES}
    path = cfg.with_name("shards.yaml")
    path.write_text(yaml.safe_dump(data))
    return load_config(path)


def packed(cfg, size=30_000):
    """Small shards, and the config that reads them."""
    parts = pack(load_config(cfg), cfg.with_name("shards"), size)
    return parts, as_shards(cfg, **{part.split: part.pattern for part in parts})


def test_samples_are_those_of_the_folder(cfg):
    parts, config = packed(cfg)
    assert len(parts[0].shards) > 3 and all(path.stat().st_size <= 30_000 for path in parts[0].shards)
    folder = load_config(cfg)
    for split in ("train", "val"):
        before, after = (split_samples(each.dataset, split) for each in (folder, config))
        assert [sample.name for sample in after] == [sample.name for sample in before]
        assert len({sample.image for sample in after}) == len(after)
        for one, other in zip(before, after, strict=True):
            assert one.reader.size(one.index) == other.reader.size(other.index)
            for expected, found in zip(one.reader.read(one.index), other.reader.read(other.index), strict=True):
                assert np.array_equal(expected, found)
        for check in ("full", "fast"):
            one, other = (audit(samples, folder.hierarchy, check=check) for samples in (before, after))
            assert (one.sizes, one.values, one.ignored) == (other.sizes, other.values, other.ignored)


def test_tar_reads_the_index_s_places(cfg):
    parts, _ = packed(cfg)
    for part in parts:
        for shard in part.shards:
            index = json.loads(shard.with_name(f"{shard.stem}.index.json").read_text())
            content = shard.read_bytes()
            assert (index["bytes"], index["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
            with tarfile.open(shard) as tar:
                members = {member.name: tar.extractfile(member).read() for member in tar}
            assert len(members) == 3 * len(index["names"])
            columns = (index[key] for key in ("names", "files", "offsets", "sizes"))
            for sample, files, offsets, sizes in zip(*columns, strict=True):
                for name, offset, size in zip(files, offsets, sizes, strict=True):
                    assert content[offset : offset + size] == members[name]
                key = files[0].partition(".")[0]
                assert json.loads(members[f"{key}.json"]) == {"name": sample}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves files open
def test_webdataset_reads_them(cfg):
    webdataset = pytest.importorskip("webdataset")
    parts, config = packed(cfg)
    urls = [str(path) for path in parts[0].shards]
    read = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    samples = split_samples(config.dataset, "train")
    assert len(read) == len(samples)
    for row, sample in zip(read, samples, strict=True):
        (image,) = (value for key, value in row.items() if key.startswith("image."))
        (image_before, _), (mask_before, _) = sample.reader.encoded(sample.index)
        assert (image, row["mask.png"], json.loads(row["json"])) == (image_before, mask_before, {"name": sample.name})


def test_packing_again_changes_nothing_and_a_killed_one_goes_on(cfg):
    parts, _ = packed(cfg)
    shards = parts[0].shards
    before = {path: path.read_bytes() for path in cfg.with_name("shards").iterdir()}
    for path in (shards[1], shards[2].with_name(f"{shards[2].stem}.index.json"), shards[-1]):
        path.unlink()
    times = shards[0].stat().st_mtime_ns
    packed(cfg)
    assert {path: path.read_bytes() for path in cfg.with_name("shards").iterdir()} == before
    assert shards[0].stat().st_mtime_ns == times


def test_shards_of_other_data_are_not_overwritten(cfg):
    parts, _ = packed(cfg)
    image = next(path for path in (cfg.parent / "data" / "train" / "images").glob("*.*") if path.is_file())
    mask = cfg.parent / "data" / "train" / "masks" / f"{image.stem}.png"
    image.rename(image.with_stem("new"))
    mask.rename(mask.with_stem("new"))
    with pytest.raises(UsageError, match=r"train-000\.tar holds other samples than this config"):
        packed(cfg)
    image.with_stem("new").rename(image)
    mask.with_stem("new").rename(mask)
    stray = parts[1].shards[0].with_name(f"val-{len(parts[1].shards):03d}.tar")
    stray.write_bytes(b"")
    with pytest.raises(UsageError, match=f"{stray.name} is left over"):
        packed(cfg)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda path: path.write_bytes(path.read_bytes()[:-512]),
            r"train-001\.tar is cut: it has \d+ bytes, its index",
        ),
        (lambda path: path.unlink(), r"train-001\.tar: No such file"),
        (lambda path: path.with_name("train-001.index.json").unlink(), r"train-001\.index\.json: No such file"),
        (lambda path: path.with_name("train-001.index.json").write_text("{"), r"train-001\.index\.json is damaged"),
    ],
)
def test_a_damaged_shard_is_named_at_once(cfg, damage, message):
    parts, config = packed(cfg)
    damage(parts[0].shards[1])
    with pytest.raises(DataError, match=message):
        split_samples(config.dataset, "train")


def test_an_altered_shard_is_named_when_it_is_read(cfg):
    parts, config = packed(cfg)
    samples = split_samples(config.dataset, "train")
    content = bytearray(parts[0].shards[1].read_bytes())
    content[600] ^= 1
    parts[0].shards[1].write_bytes(content)
    with pytest.raises(DataError, match=r"train-001\.tar is altered: its file \d+\.image\.\w+ is not"):
        audit(samples, config.hierarchy)


def test_a_mask_of_another_size_is_found_while_packing(cfg):
    path = cfg.parent / "data" / "val" / "masks" / "0.png"
    Image.fromarray(np.zeros((5, 5), dtype=np.uint8)).save(path)
    with pytest.raises(DataError, match=r"0\.png is 5x5 px"):
        packed(cfg)
    assert not list(cfg.with_name("shards").glob("val*"))


def test_keys_that_are_wrong(cfg):
    parts, _ = packed(cfg)
    for keys, message in (
        ({"train": {"urls": []}}, "expected shards, each of them once, found 0"),
        ({"train": ["train-000.tar"]}, "expected URLS, or {urls: URLS}"),
        ({"train": {"urls": ["train-000.tar"] * 2}}, "each of them once, found 2"),
    ):
        with pytest.raises((DataError, UsageError), match=message):
            split_samples(as_shards(cfg, val=parts[1].pattern, **keys).dataset, "train")


def test_the_command(cfg, run, tmp_path):
    code, out, err = run("data", "pack", cfg, tmp_path / "out", "--shard-mib", 1)
    assert code == 0 and out.splitlines()[0].startswith("train: 20 images, 0.1 MiB in 1 shard: train-000.tar")
    document = yaml.safe_load(err[err.index("dataset:") :])
    (tmp_path / "new.yaml").write_text(yaml.safe_dump({**document, "classes": CLASSES}))
    code, out, err = run("data", "check", tmp_path / "new.yaml", "--json")
    assert code == 0, err
    code, out, err = run("data", "pack", tmp_path / "new.yaml", tmp_path / "again", "--json")
    assert code == 0 and [each["samples"] for each in json.loads(out)] == [20, 3]
    assert (tmp_path / "again/train-000.tar").read_bytes() == (tmp_path / "out/train-000.tar").read_bytes()


def test_another_size_is_refused_where_shards_are(cfg, run, tmp_path):
    assert run("data", "pack", cfg, tmp_path / "out", "--shard-mib", 1)[0] == 0
    code, _, err = run("data", "pack", cfg, tmp_path / "out", "--shard-mib", 2)
    assert code == 2 and "was packed with --shard-mib 1; keep that size" in err


def test_sources_have_folders_of_their_own(cfg, run, tmp_path):
    document = yaml.safe_load(cfg.read_text())
    document["dataset"]["sources"] = [{"name": "a"}, {"name": "b", "val": None}]
    cfg.write_text(yaml.safe_dump(document))
    code, _, err = run("data", "pack", cfg, tmp_path / "out")
    assert code == 0
    section = yaml.safe_load(err[err.index("dataset:") :])
    assert [sorted(source) for source in section["dataset"]["sources"]] == [
        ["name", "root", "train", "val"],
        ["name", "root", "train"],
    ]
    (tmp_path / "new.yaml").write_text(yaml.safe_dump({**section, "classes": CLASSES}))
    new = split_samples(load_config(tmp_path / "new.yaml").dataset, "train")
    assert [sample.source for sample in new] == [0] * 20 + [1] * 20


@settings(deadline=None)
@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 4))
def test_ranges(first, last, width):
    found = expand(f"s3://b/{{{first:0{width}d}..{last:0{width}d}}}/x.tar")
    assert found == [f"s3://b/{number:0{width}d}/x.tar" for number in range(first, last + 1)]


def test_two_ranges_and_none():
    assert expand("a-{0..1}-{08..09}") == ["a-0-08", "a-0-09", "a-1-08", "a-1-09"]
    assert expand("a.tar") == ["a.tar"]
