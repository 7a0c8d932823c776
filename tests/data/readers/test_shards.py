"""Shards on a web server, with a cache of a tenth of the data."""

from __future__ import annotations

import errno
import json
import multiprocessing
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from seghiero_core.config.loading import load_config
from seghiero_core.data import remote
from seghiero_core.data.loaders import SegmentationDataset, batches, train_loader
from seghiero_core.data.remote import ShardCache
from seghiero_core.data.samples import split_samples
from seghiero_core.data.shards import pack
from seghiero_core.errors import DataError, DeviceError, UsageError
from support.web import serve

SHARDS = 40
SMALL = {"transform": {"size": [32, 32]}}
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with 80 pairs, and the 40 shards of them."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for kind, shape, high in (("images", (32, 48, 3), 256), ("masks", (32, 48), 3)):
        (folder / "train" / kind).mkdir(parents=True)
        for number in range(2 * SHARDS):
            array = rng.integers(0, high, shape, dtype=np.uint8)
            Image.fromarray(array).save(folder / "train" / kind / f"{number:03d}.png")
    config = {"dataset": {"train": "train", "val": "train"}, "classes": {"labels": ["sky", "road", "car"]}, **SMALL}
    (folder / "cfg.yaml").write_text(json.dumps(config))
    (part, _) = pack(load_config(folder / "cfg.yaml"), folder / "shards", 20_480)
    assert len(part.shards) == SHARDS
    return folder


@pytest.fixture
def server(data, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_DELAY", 0.01)
    with serve(data / "shards") as found:
        yield found


@pytest.fixture
def cached(server, tmp_path):
    """`cached(**keys)` is the config that reads from the server."""

    def write(**keys):
        urls = f"{server.url}/train-{{000..{SHARDS - 1:03d}}}.tar"
        dataset = {"type": "shards", "train": urls, "val": urls, "window": 2, "cache_dir": str(tmp_path / "c"), **keys}
        path = tmp_path / "cfg.yaml"
        path.write_text(json.dumps({"dataset": dataset, "classes": {"labels": ["sky", "road", "car"]}, **SMALL}))
        return load_config(path)

    return write


@pytest.fixture
def tenth(data, monkeypatch):
    """The cache is bounded to a tenth of the data; the largest sizes that it had are in the list."""
    total = sum(path.stat().st_size for path in (data / "shards").glob("train*.tar"))
    before, sizes = ShardCache._make_room, []

    def make_room(self, size):
        self.limit = total // 10
        room = before(self, size)
        kept = size * room
        for path in [*self.folder.glob("*.part"), *self.folder.glob("*.tar")]:
            with suppress(FileNotFoundError):  # another process has just finished with it
                kept += path.stat().st_size
        sizes.append(kept / total)
        return room

    monkeypatch.setattr(ShardCache, "_make_room", make_room)
    return sizes


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_folder(data, cached, server, tenth, workers):
    config, folder = cached(), load_config(data / "cfg.yaml")
    samples = split_samples(config.dataset, "train")
    loader = train_loader(samples, config.hierarchy, config.transform, batch_size=4, seed=3, workers=workers)
    expected = SegmentationDataset(split_samples(folder.dataset, "train"), folder.hierarchy, folder.transform, 3)
    for epoch in range(2):
        loader.sampler.start_epoch(epoch)
        keys = list(loader.sampler)
        assert sorted(index for _, index, _ in keys) == list(range(2 * SHARDS))
        found = list(batches(loader))
        assert len(found) == SHARDS // 2
        for number, batch in enumerate(found):
            rows = [expected[key] for key in keys[4 * number : 4 * number + 4]]
            for entry in ("image", "target", "counts"):
                assert torch.equal(batch[entry], torch.stack([row[entry] for row in rows]))
    downloads = {name: count for name, count in server.requests.items() if name.endswith(".tar")}
    assert len(downloads) == SHARDS
    if workers == 0:  # others are at different shards at times
        assert set(downloads.values()) == {2}  # once in each epoch
        assert 0.05 < max(tenth) <= 0.1


def test_processes_share_the_cache(cached, server, tmp_path):
    """Of four processes that want the same shards at once, one downloads each."""
    config = cached(train=f"{server.url}/train-{{000..009}}.tar")
    with multiprocessing.get_context("fork").Pool(4) as pool:
        found = pool.map(_checksum, [config] * 4)
    assert len(set(found)) == 1
    assert {server.requests[f"train-{number:03d}.tar"] for number in range(10)} == {1}
    assert not list((tmp_path / "c").glob("*.part"))


def _checksum(config) -> int:
    return sum(int(sample.read(config.hierarchy)[0].sum()) for sample in split_samples(config.dataset, "train"))


@pytest.mark.parametrize("fault", [500, 503, "cut", "slow", "stall"])
def test_what_passes_is_retried(cached, server, data, monkeypatch, fault):
    monkeypatch.setattr(remote, "STALLED", 0.5)
    config = cached()
    server.faults = {name: [fault] for name in ("train-003.tar", "train-004.index.json")}
    samples, expected = (split_samples(each.dataset, "train") for each in (config, load_config(data / "cfg.yaml")))
    for sample, other in zip(samples, expected, strict=True):
        assert np.array_equal(sample.read(config.hierarchy)[0], other.read(config.hierarchy)[0])
    assert server.requests["train-003.tar"] == (1 if fault == "slow" else 2)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ([500] * 9, r"train-003\.tar can't be read after 5 attempts \(ClientResponseError: 500"),
        (["cut"] * 9, r"train-003\.tar can't be read after 5 attempts \(ClientPayloadError"),
        ([404], r"train-003\.tar does not exist\. Correct the URL"),
    ],
)
def test_what_stays_ends_the_epoch_and_names_the_shard(cached, server, faults, message, workers):
    config = cached()
    samples = split_samples(config.dataset, "train")
    server.faults["train-003.tar"] = list(faults)
    loader = train_loader(samples, config.hierarchy, config.transform, batch_size=1, workers=workers)
    with pytest.raises(DataError, match=rf"^{server.url}/{message}"):
        list(batches(loader))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:-512], r"train-003\.tar is cut: it has \d+ bytes, its index says \d+\. Upload"),
        (lambda content: content[:700] + bytes([content[700] ^ 1]) + content[701:], r"train-003\.tar is altered: its"),
    ],
)
def test_a_shard_that_differs_on_the_server(cached, server, data, tmp_path, change, message):
    shutil.copytree(data / "shards", tmp_path / "copy")
    server.folder = tmp_path / "copy"
    config = cached()
    path = tmp_path / "copy" / "train-003.tar"
    path.write_bytes(change(path.read_bytes()))
    samples = split_samples(config.dataset, "train")
    with pytest.raises(DataError, match=message):
        samples[6].read(config.hierarchy)
    assert server.requests["train-003.tar"] == remote.ATTEMPTS
    samples[0].read(config.hierarchy)


def test_an_altered_copy_in_the_cache_is_named(cached, tmp_path):
    config = cached()
    samples = split_samples(config.dataset, "train")
    samples[0].read(config.hierarchy)
    (path,) = (tmp_path / "c").glob("*.tar")
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(DataError, match=rf"{path.name} in the cache is altered"):
        samples[0].read(config.hierarchy)
    path.unlink()
    samples[0].read(config.hierarchy)


def test_a_full_disk(cached, monkeypatch):
    config = cached()
    samples = split_samples(config.dataset, "train")
    before = Path.open

    def full(self, mode="r", *args, **kwargs):
        if self.suffix == ".part" and "w" in mode:
            raise OSError(errno.ENOSPC, "No space left on device")
        return before(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", full)
    for workers in (0, 1):
        loader = train_loader(samples, config.hierarchy, config.transform, batch_size=1, workers=workers)
        with pytest.raises(DeviceError, match=r"^.*/c: No space left on device, while a shard was downloaded\. Free"):
            list(batches(loader))


def test_what_a_killed_process_left_is_removed(cached, tmp_path, tenth):
    config = cached()
    (tmp_path / "c").mkdir()
    left = tmp_path / "c" / f"{64 * 'a'}.part"
    left.write_bytes(bytes(10**6))
    split_samples(config.dataset, "train")[0].read(config.hierarchy)
    assert not left.exists()


def test_the_cache_must_hold_the_window(cached, monkeypatch):
    with pytest.raises(DataError, match=r"dataset\.train: training reads 40 shards at a time, .*: 820 MiB\. Set"):
        monkeypatch.setattr("seghiero_core.data.readers.shards.MIB", 1000)
        split_samples(cached(window=40, cache_mib=700).dataset, "train")


def test_an_unknown_protocol(cached):
    with pytest.raises(UsageError, match=r"sss://b/x\.index\.json can't be read \(Protocol not known: sss"):
        split_samples(cached(train="sss://b/x.tar").dataset, "train")
