from __future__ import annotations

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from seghiero_core.config.loading import load_config
from seghiero_core.data.audit import audit
from seghiero_core.data.samples import split_samples
from seghiero_core.errors import DataError, UsageError
from support.tiny import TINY

datasets = pytest.importorskip("datasets")

COLUMNS = {"image": datasets.Image(), "mask": datasets.Image()}


def encoded(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, format="PNG")
    return {"bytes": file.getvalue(), "path": None}


def rows(count, seed=0, size=(32, 48)):
    """Images and masks, as arrays."""
    rng = np.random.default_rng(seed)
    return [
        (rng.integers(0, 256, (*size, 3), dtype=np.uint8), rng.integers(0, 3, size, dtype=np.uint8))
        for _ in range(count)
    ]


def table(pairs, **columns):
    cells = {id(array): encoded(array) for pair in pairs for array in pair}
    data = {"image": [cells[id(pair[0])] for pair in pairs], "mask": [cells[id(pair[1])] for pair in pairs], **columns}
    features = {**COLUMNS, **{name: datasets.Value("int64") for name in columns}}
    return datasets.Dataset.from_dict(data, features=datasets.Features(features))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf") / "set"
    splits = {"train": table(rows(6), other=list(range(6))), "validation": table(rows(3, seed=1), other=[0] * 3)}
    datasets.DatasetDict(splits).save_to_disk(folder)
    return folder


@pytest.fixture
def cfg(tmp_path, saved):
    def write(**dataset):
        dataset = {"type": "huggingface", "path": str(saved), "train": "train", "val": "validation", **dataset}
        path = tmp_path / "cfg.yaml"
        path.write_text(json.dumps({"dataset": dataset, "classes": {"labels": ["sky", "road", "car"]}}))
        return path

    return write


def test_rows_are_samples(cfg, saved):
    config = load_config(cfg())
    for split, expected in (("train", rows(6)), ("val", rows(3, seed=1))):
        samples = split_samples(config.dataset, split)
        assert len(samples) == len(expected)
        for sample, (image, mask) in zip(samples, expected, strict=True):
            found = sample.reader.read(sample.index)
            assert np.array_equal(found[0], image) and np.array_equal(found[1], mask)
        found = audit(samples, config.hierarchy)
        assert found.sizes == {(32, 48): len(expected)}
        assert found.pixels.tolist() == np.bincount(np.ravel([mask for _, mask in expected]), minlength=3).tolist()
    assert samples[2].name == "00000002" and samples[2].image == saved / "validation" / "00000002" / "image"


def test_paths_are_relative_to_the_root(cfg, saved):
    config = load_config(cfg(root=str(saved.parent), path="set"))
    assert config.dataset.path == str(saved)
    assert load_config(cfg(path="somebody/camvid")).dataset.path == "somebody/camvid"


def test_a_folder_of_one_split_and_other_columns(cfg, tmp_path):
    renamed = table(rows(2)).rename_columns({"image": "pixels", "mask": "label"})
    renamed.save_to_disk(tmp_path / "one")
    one = {"path": "one", "image": "pixels", "mask": "label"}
    assert len(split_samples(load_config(cfg(val=one)).dataset, "val")) == 2


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"val": "test"}, r"dataset\.val: .* has no split 'test'; set dataset\.val\.split to one of train, validation"),
        ({"val": {"subset": "x"}}, "has several splits"),
        ({"mask": "label"}, r"has no column 'label'; set dataset\.mask to one of image, mask, other"),
        ({"mask": "other"}, "column 'other' of .* holds no encoded images, but Value"),
    ],
)
def test_faults(cfg, keys, message):
    with pytest.raises(DataError, match=message):
        split_samples(load_config(cfg(**keys)).dataset, "val")


def test_what_is_not_there(cfg, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=rf"dataset\.val: the data set '{empty}' can't be loaded \("):
        split_samples(load_config(cfg(path=str(empty))).dataset, "val")


def test_a_cell_without_an_image(cfg, tmp_path):
    features = datasets.Features(COLUMNS)
    data = {"image": [encoded(rows(1)[0][0])], "mask": [None]}
    datasets.Dataset.from_dict(data, features=features).save_to_disk(tmp_path / "one")
    config = load_config(cfg(val={"path": "one"}))
    (sample,) = split_samples(config.dataset, "val")
    with pytest.raises(DataError, match=r"one: row 0 has no mask"):
        sample.read(config.hierarchy)


def test_without_the_library(cfg, monkeypatch):
    config = load_config(cfg())
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"pip install 'seghiero\[huggingface\]'"):
        split_samples(config.dataset, "val")


def test_it_trains_and_copies_nothing(cfg, saved, run, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in saved.rglob("*")}
    training = "training={device: cpu, epochs: 1, batch_size: 2, workers: 1, precision: fp32}"
    words = [word for text in (*TINY, training, "transform.size=[32,32]") for word in ("--set", text)]
    code, out, err = run("train", cfg(), *words)
    assert code == 0, (out, err)
    assert {path: path.stat().st_mtime_ns for path in saved.rglob("*")} == before
    assert not list(tmp_path.rglob("*.arrow"))


_MEMORY = """
import sys
from seghiero_core.config.loading import load_config
from seghiero_core.data.samples import split_samples
def anonymous():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 1024
config = load_config(sys.argv[1])
samples = split_samples(config.dataset, "val")
samples[0].read(config.hierarchy)
before = anonymous()
samples = split_samples(config.dataset, "train")
for sample in samples:
    sample.read(config.hierarchy)
print(anonymous() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_size(cfg, tmp_path):
    """30 MB of images, read once, add less than a third of that: whatever decoding needs."""
    pairs = rows(1, size=(500, 500)) * 40
    datasets.DatasetDict({"train": table(pairs), "validation": table(pairs[:1])}).save_to_disk(tmp_path / "large")
    assert sum(path.stat().st_size for path in (tmp_path / "large" / "train").iterdir()) > 30e6
    words = [sys.executable, "-c", _MEMORY, cfg(path="large")]
    grown = subprocess.run(words, capture_output=True, text=True, check=True)
    assert float(grown.stdout) < 10, grown.stdout
