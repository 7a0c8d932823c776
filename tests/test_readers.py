"""A reader of somebody else's, with nothing but what is required, does in all places what folders do."""

from __future__ import annotations

import json

import numpy as np
import pytest

from seghiero_core.config.loading import load_config, override_config
from seghiero_core.data.audit import audit
from seghiero_core.data.loaders import batches, eval_loader
from seghiero_core.data.samples import split_samples
from seghiero_core.errors import ConfigError, DataError
from seghiero_core.readers import READERS, Reader, register_reader
from support.tiny import TINY

LABELS = {"labels": ["sky", "road", "car"]}


class Drawn(Reader):
    """Random images of 32x48 px, which are stored nowhere."""

    def __init__(self, count: int, seed: int, largest: int) -> None:
        self.count, self.seed, self.largest = count, seed, largest

    def __len__(self) -> int:
        return self.count

    def read(self, index: int):
        rng = np.random.default_rng((self.seed, index))
        image = rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)
        mask = rng.integers(0, self.largest + 1, (32, 48), dtype=np.uint16)
        return image, mask, f"{self.seed}-{index}"


@pytest.fixture(autouse=True)
def drawn():
    @register_reader("drawn", short=lambda seed: {"seed": int(seed)})
    def build(key: str, *, count: int = 4, seed: int, largest: int = 2) -> Reader:
        if count > 100:
            raise DataError(f"{key}.count: too many.")
        return Drawn(count, seed, largest)

    yield
    del READERS.entries["drawn"]


@pytest.fixture
def cfg(tmp_path):
    def write(**dataset):
        path = tmp_path / "cfg.yaml"
        dataset = {"type": "drawn", "count": 6, "train": "1", "val": {"seed": 2, "count": 3}, **dataset}
        path.write_text(json.dumps({"dataset": dataset, "classes": LABELS}, indent=1))
        return path

    return write


def test_options_come_from_the_split_then_the_data_set_then_the_builder(cfg):
    dataset = load_config(cfg()).dataset
    train, val = split_samples(dataset, "train"), split_samples(dataset, "val")
    assert (len(train), train[0].reader.seed, train[0].reader.largest) == (6, 1, 2)
    assert (len(val), val[0].reader.seed) == (3, 2)
    assert [sample.name for sample in val] == ["2-0", "2-1", "2-2"]


def test_the_config_of_a_run_reads_the_same(cfg, tmp_path):
    config = load_config(cfg(largest=1))
    (tmp_path / "again.yaml").write_text(config.to_yaml())
    again = load_config(tmp_path / "again.yaml")
    assert again.dataset == config.dataset
    changed = override_config(config, ["dataset.val.seed=7", "dataset.count=2"]).dataset
    assert (changed.val.seed, changed.val.count, changed.count, changed.largest) == (7, 3, 2, 1)


@pytest.mark.parametrize(
    ("dataset", "key", "message"),
    [
        ({"type": "drwn"}, "type", "dataset.type: unknown reader 'drwn'. Did you mean 'drawn'?"),
        ({"val": {"count": 3}}, "val", "dataset.val.seed: this key is required."),
        ({"train": {"seed": 1, "cuont": 3}}, "cuont", "dataset.train.cuont: unknown key. Did you mean"),
        ({"count": "x"}, "count", "dataset.count: expected a whole number, found 'x'."),
        ({"val": {"seed": []}}, "seed", "dataset.val.seed: expected a whole number, found []."),
        ({"image_suffix": "a"}, "image_suffix", "dataset.image_suffix: unknown key."),
        ({"train": 3}, "train", "dataset.train: expected {seed: ...}, found 3."),
        ({"sources": [{"name": "a", "count": "x"}]}, "count", "dataset.sources.0.count: expected a whole number"),
        ({"count": "x", "sources": [{"name": "a"}]}, "count", "dataset.count: expected a whole number, found 'x'."),
        ({"sources": [{"name": "a", "type": "foldr"}]}, "type", "dataset.sources.0.type: unknown reader 'foldr'."),
    ],
)
def test_a_fault_is_named_with_its_line(cfg, dataset, key, message):
    path = cfg(**dataset)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    text = next(line for line in str(caught.value).splitlines() if message in line)
    number = int(text.partition("line ")[2].partition(":")[0])
    assert f'"{key}"' in path.read_text().splitlines()[number - 1] or "required" in message
    assert str(caught.value).count(message) == 1


def test_a_source_of_another_type_takes_over_no_keys(cfg, folders):
    folders.add("a", np.zeros((32, 48), dtype=np.uint8))
    images = {"train": str(folders.images.parent)}
    config = load_config(cfg(sources=[{"name": "a"}, {"name": "b", "type": "folder", **images}]))
    assert [sample.source for sample in split_samples(config.dataset, "train")] == [0] * 6 + [1]
    assert [sample.source for sample in split_samples(config.dataset, "val")] == [0] * 3


def test_its_samples_are_checked_and_loaded(cfg):
    config = load_config(cfg())
    samples = split_samples(config.dataset, "train")
    for check, decoded in (("full", 6), ("fast", 6)):
        found = audit(samples, config.hierarchy, check=check)
        assert (found.sizes, found.decoded) == ({(32, 48): 6}, decoded)
        masks = np.stack([sample.reader.read(sample.index)[1] for sample in samples])
        assert found.pixels.tolist() == np.bincount(masks.ravel(), minlength=3).tolist()
    for position, batch in enumerate(batches(eval_loader(samples, config.hierarchy, workers=2))):
        image, mask, _ = samples[position].reader.read(position)
        assert np.array_equal(batch["image"][0].permute(1, 2, 0), image) and np.array_equal(batch["target"][0], mask)


def test_its_faults_are_those_of_folders(cfg):
    config = load_config(cfg(largest=3))
    with pytest.raises(DataError, match=r"6 masks have values that are not labels: 3 \(\d+ px\); 1-0, 1-1, 1-2 and 3"):
        audit(split_samples(config.dataset, "train"), config.hierarchy)
    with pytest.raises(DataError, match=r"dataset\.train\.count: too many\."):
        split_samples(load_config(cfg(count=101)).dataset, "train")
    sample = split_samples(config.dataset, "val")[0]
    with pytest.raises(DataError, match="2-0 has values that are not labels"):
        sample.read(config.hierarchy)


def test_every_command_takes_it(cfg, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = cfg()
    training = "training={device: cpu, epochs: 1, batch_size: 2, workers: 0}"
    overrides = [word for text in (*TINY, training, "transform.size=[32,32]") for word in ("--set", text)]
    for words in (
        ("data", "check", path),
        ("data", "stats", path),
        ("data", "preview", path, "--augmented"),
        ("train", path, *overrides),
        ("eval", "--json"),
        ("eval", "--set", "dataset.count=2", "--set", "dataset.val='5'"),
    ):
        code, out, err = run(*words)
        assert code == 0, (words, out, err)
        if words[-1] == "--json":
            document = json.loads(out)
            assert (document["images"], document["data"]) == (3, {"seed": 2, "count": 3})
    assert (tmp_path / "preview.png").exists()
