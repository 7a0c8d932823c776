"""The cache of what was found in samples: never trusted when a file changed, and safe with several processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from seghiero_core.data.audit import try_audit
from seghiero_core.data.facts import Facts, FactsCache, cache_file, find_facts
from seghiero_core.data.samples import find_samples, samples_of
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.readers import Reader
from support.processes import ROOT


@pytest.fixture
def samples(folders, tmp_path, monkeypatch):
    """Three pairs that look old, and an empty cache."""
    monkeypatch.setenv("SEGHIERO_CACHE", str(tmp_path / "cache"))
    for i in range(3):
        folders.add(f"{i}", np.full((4, 6), i, np.uint8))
    for path in (*folders.images.iterdir(), *folders.masks.iterdir()):
        os.utime(path, (1e9, 1e9))
    return find_samples(folders)


def known(samples) -> list[Facts | None]:
    with FactsCache() as cache:
        return list(cache.find(samples, [sample.reader.stamp(sample.index) for sample in samples]))


def fill(samples):
    with FactsCache() as cache:
        return try_audit(samples, Hierarchy.from_config({"labels": ["a", "b", "c"]}), cache=cache)


def test_facts_equal_what_is_found_again(samples):
    Image.fromarray(np.full((4, 6), 999, np.uint16)).save(samples[0].image)
    os.utime(samples[0].image, (1e9, 1e9))
    assert known(samples) == [None] * 3
    fill(samples)
    assert known(samples) == [find_facts(sample, decode=True) for sample in samples]
    assert known(samples)[0].peak == 999 and known(samples)[1].values == {1: 24}


@pytest.mark.parametrize("kind", ["image", "mask"])
@pytest.mark.parametrize("change", ["size", "time", "neither"])
def test_facts_of_a_changed_file_are_not_trusted(samples, kind, change):
    fill(samples)
    path = getattr(samples[1], kind)
    old = path.read_bytes()
    time.sleep(0.02)  # more than a tick of the file system's clock
    path.write_bytes(old + b"x" * (change == "size") if change != "neither" else bytes(len(old)))
    os.utime(path, (1e9 + (change == "time"),) * 2)
    assert [facts is None for facts in known(samples)] == [False, True, False]


def test_facts_of_a_replaced_mask_are_replaced(samples):
    fill(samples)
    Image.fromarray(np.full((4, 6), 2, np.uint8)).save(samples[0].mask)
    os.utime(samples[0].mask, (1e9 + 9, 1e9 + 9))
    assert fill(samples).values == {1: 24, 2: 48}
    assert known(samples)[0].values == {2: 24}


def test_files_that_may_still_change_are_not_kept(samples):
    os.utime(samples[2].mask)
    fill(samples)
    assert [facts is None for facts in known(samples)] == [False, False, True]


def test_what_has_a_fault_is_not_kept(samples):
    samples[0].image.write_bytes(b"no")
    os.utime(samples[0].image, (1e9, 1e9))
    assert len(fill(samples).faults) == 1
    assert [facts is None for facts in known(samples)] == [True, False, False]


def test_labels_that_changed_need_no_decoding(samples, monkeypatch):
    fill(samples)
    monkeypatch.setattr("seghiero_core.data.audit.find_facts", None)
    with FactsCache() as cache:
        found = try_audit(samples, Hierarchy.from_config({"labels": {0: "a", 1: "b", 7: "c"}}), cache=cache)
    assert "2 (24 px)" in str(found.faults[0])


def test_a_fast_check_does_not_depend_on_the_cache(samples, monkeypatch):
    monkeypatch.setattr("seghiero_core.data.audit.DECODED_BY_FAST_CHECK", 1)
    hierarchy = Hierarchy.from_config({"labels": ["a", "b", "c"]})
    expected = try_audit(samples, hierarchy, check="fast")
    fill(samples)
    with FactsCache() as cache:
        assert try_audit(samples, hierarchy, check="fast", cache=cache).values == expected.values == {0: 24}


class Endless(Reader):
    """Samples of which nothing tells whether they changed."""

    def __len__(self) -> int:
        return 2

    def read(self, index: int):
        return np.full((4, 4, 3), 50 * index, np.uint8), np.full((4, 4), index, np.uint8), str(index)


def test_readers_without_a_stamp_are_always_checked(samples):
    mine = samples_of(Endless())
    found = fill(mine)
    assert found.values == {0: 16, 1: 16} and known(mine) == [None, None]
    assert [facts.mean for facts in found.facts] == [(0, 0, 0), (50, 50, 50)]
    assert len({facts.digest for facts in found.facts}) == 2


def test_where_the_cache_is(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGHIERO_CACHE", str(tmp_path / "mine"))
    assert cache_file() == tmp_path / "mine" / "facts.sqlite"
    monkeypatch.setenv("SEGHIERO_CACHE", "off")
    assert cache_file() is None
    monkeypatch.delenv("SEGHIERO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_file() == tmp_path / "seghiero" / "facts.sqlite"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_file() == tmp_path / ".cache" / "seghiero" / "facts.sqlite"


@pytest.mark.parametrize("spoil", ["file", "folder"])
def test_a_cache_that_cant_be_used_holds_nothing_and_says_why(samples, tmp_path, spoil):
    if spoil == "file":
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache/facts.sqlite").write_bytes(b"no database" * 100)
    else:
        (tmp_path / "cache").write_bytes(b"")
    with FactsCache() as cache:
        found = try_audit(samples, Hierarchy.from_config({"labels": ["a", "b", "c"]}), cache=cache)
    assert found.decoded == 3 and str(tmp_path / "cache") in cache.problem


WRITER = """
import sys
from pathlib import Path
from types import SimpleNamespace
from seghiero_core.data.audit import try_audit
from seghiero_core.data.facts import FactsCache
from seghiero_core.data.samples import find_samples
from seghiero_core.hierarchy.tree import Hierarchy
root = Path(sys.argv[1])
samples = find_samples(SimpleNamespace(images=root / "images", masks=root / "masks"))
for _ in range(3):
    with FactsCache() as cache:
        found = try_audit(samples, Hierarchy.from_config({"labels": ["a", "b", "c"]}), cache=cache)
    assert not cache.problem and found.decoded == len(samples), cache.problem
"""


def test_several_processes_share_the_cache(samples, folders, monkeypatch):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WRITER, str(folders.images.parent)]
    writers = [subprocess.Popen(command, env=environment) for _ in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert known(samples) == [find_facts(sample, decode=True) for sample in samples]
