from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader

from seghiero_core.config.schema import TransformConfig
from seghiero_core.data import loaders
from seghiero_core.data.loaders import (
    SegmentationDataset,
    batches,
    epoch_length,
    eval_loader,
    num_workers,
    train_loader,
)
from seghiero_core.data.sampler import EpochSampler
from seghiero_core.data.samples import find_samples
from seghiero_core.errors import DataError, DeviceError
from seghiero_core.hierarchy.tree import IGNORE_INDEX

# Linux forks workers; Python 3.12 warns of that wherever threads run, which is torch's business.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

TRANSFORM, SEED = TransformConfig(size=(16, 24)), 3


@pytest.fixture
def samples(folders):
    rng = np.random.default_rng(1)
    for i in range(10):
        folders.add(f"{i}", rng.choice(np.array([0, 2, 5, 9, 255], dtype=np.uint8), (20, 30)))
    return find_samples(folders)


def epoch_of(loader, epoch, start=0):
    loader.sampler.start_epoch(epoch, start)
    return list(batches(loader))


def same(left, right):
    return len(left) == len(right) and all(
        torch.equal(a[key], b[key]) for a, b in zip(left, right, strict=True) for key in ("image", "target", "index")
    )


def test_batches_have_the_contract(samples, ragged):
    (first, second) = epoch_of(train_loader(samples, ragged, TRANSFORM, seed=SEED, batch_size=4, workers=0), 0)
    assert first["image"].shape == (4, 3, 16, 24) and first["image"].dtype == torch.uint8
    assert first["target"].shape == (4, 16, 24) and first["target"].dtype == torch.int64
    assert set(torch.cat([first["target"], second["target"]]).unique().tolist()) <= {IGNORE_INDEX, *range(len(ragged))}
    seen = torch.cat([first["index"], second["index"]]).tolist()
    assert len(set(seen)) == 8  # the short third batch is dropped
    columns = [*range(len(ragged)), IGNORE_INDEX]
    counts = [[int((target == label).sum()) for label in columns] for target in first["target"]]
    assert first["counts"].tolist() == counts


def test_workers_change_nothing(samples, ragged):
    alone = train_loader(samples, ragged, TRANSFORM, seed=SEED, batch_size=4, workers=0)
    helped = train_loader(samples, ragged, TRANSFORM, seed=SEED, batch_size=4, workers=2)
    for epoch in (0, 1):
        torch.manual_seed(epoch)  # global state that no worker may take part in
        assert same(epoch_of(alone, epoch), epoch_of(helped, epoch))
    # Not in order, and with iterators given up half way: persistent workers must carry nothing over.
    helped.sampler.start_epoch(5)
    next(iter(helped))
    assert same(epoch_of(alone, 7), epoch_of(helped, 7))


def test_epochs_differ_in_order_and_augmentation(samples, ragged):
    loader = train_loader(samples, ragged, TRANSFORM, seed=SEED, batch_size=10, workers=0)
    (one,), (two,) = epoch_of(loader, 0), epoch_of(loader, 1)
    assert one["index"].tolist() != two["index"].tolist()
    first, second = one["image"][one["index"].argsort()], two["image"][two["index"].argsort()]
    assert all(not torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_resumed_epoch_is_the_rest_of_the_whole_one(samples, ragged):
    loader = train_loader(samples, ragged, TRANSFORM, seed=SEED, batch_size=2, workers=0)
    whole = epoch_of(loader, 4)
    assert same(whole[3:], epoch_of(loader, 4, start=6)) and len(loader) == 2
    assert epoch_of(loader, 4, start=10) == []


def test_sampler_is_a_permutation_that_shares_no_stream_with_augmentation():
    sampler = EpochSampler([50], seed=1)
    sampler.start_epoch(2)
    keys = list(sampler)
    assert keys == list(sampler) and {epoch for epoch, *_ in keys} == {2}
    order = [index for _, index, _ in keys]
    assert sorted(order) == list(range(50)) and order != sorted(order)
    # numpy pads a seed with zeros, so (1, 2) and (1, 2, 0) are one stream: the sampler's must be neither.
    assert order != np.random.default_rng((1, 2, 0)).permutation(50).tolist()


def test_a_repeated_sample_is_augmented_differently_each_time_and_workers_change_nothing(samples, ragged):
    mixed = [*samples[:3], *(replace(sample, source=1) for sample in samples[3:5])]
    mixed = [replace(sample, source=sample.source or 0) for sample in mixed]
    tree = replace(ragged, sources=(ragged, ragged))
    options = {"seed": SEED, "batch_size": 9, "weights": [1, 3]}
    loader = train_loader(mixed, tree, TRANSFORM, workers=0, **options)
    assert epoch_length(mixed, [1, 3]) == 9 and epoch_length(mixed) == 5 and loader.sampler.length == 9
    (batch,) = whole = epoch_of(loader, 2)
    assert Counter(batch["index"].tolist()) == {0: 1, 1: 1, 2: 1, 3: 3, 4: 3}
    for index in (3, 4):
        images = batch["image"][batch["index"] == index]
        assert len({image.numpy().tobytes() for image in images}) == 3
    plain = epoch_of(train_loader(samples[:5], ragged, TRANSFORM, seed=SEED, batch_size=5, workers=0), 2)[0]
    for image, index in zip(plain["image"], plain["index"].tolist(), strict=True):  # as the first draw
        assert any(torch.equal(image, other) for other in batch["image"][batch["index"] == index])
    assert same(whole, epoch_of(train_loader(mixed, tree, TRANSFORM, workers=1, **options), 2))


def test_masks_are_read_with_the_values_of_their_source(folders, ragged):
    folders.add("a", np.array([[0, 2], [5, 255]], dtype=np.uint8))
    (sample,) = find_samples(folders)
    other = replace(ragged, values={255: 1, 2: 2}, ignore=0, section="dataset.sources.1")
    dataset = SegmentationDataset(
        [sample, replace(sample, source=0), replace(sample, source=1)], replace(ragged, sources=(ragged, other))
    )
    assert dataset[0]["target"].tolist() == dataset[1]["target"].tolist() == [[0, 1], [2, IGNORE_INDEX]]
    with pytest.raises(DataError, match=r"not labels: 5 \(1 px\). Add them to dataset.sources.1.labels, or"):
        dataset[2]
    other.values[5] = 0
    assert dataset[2]["target"].tolist() == [[IGNORE_INDEX, 2], [0, 1]]


def test_short_sets_are_not_dropped(samples, ragged):
    (batch,) = epoch_of(train_loader(samples[:3], ragged, TRANSFORM, seed=SEED, batch_size=8, workers=0), 0)
    assert len(batch["image"]) == 3


@pytest.mark.parametrize("batch_size", [2, 3, 8])
def test_accelerate_shards_without_overlap_and_resumes(samples, ragged, batch_size):
    def shards(epoch, start=0):
        result = []
        for rank in range(2):
            loader = train_loader(samples, ragged, TRANSFORM, seed=SEED, batch_size=batch_size, workers=0, processes=2)
            sharded = prepare_data_loader(loader, num_processes=2, process_index=rank, put_on_device=False)
            list(sharded)  # accelerate counts its passes; that must not move ours
            loader.sampler.start_epoch(epoch, start)
            result.append([batch["index"].tolist() for batch in sharded])
        return result

    ranks = shards(3)
    order = EpochSampler([10], SEED)
    order.start_epoch(3)
    expected = [index for _, index, _ in order]
    assert len(ranks[0]) == len(ranks[1]) > 0
    seen = [index for pair in zip(*ranks, strict=True) for batch in pair for index in batch]
    if 2 * batch_size <= 10:
        assert seen == expected[: len(seen)] and len(seen) == 10 // (2 * batch_size) * 2 * batch_size
        resumed = shards(3, start=2 * batch_size)
        assert resumed == [rank[1:] for rank in ranks]
    else:  # fewer samples than a batch each: every sample is seen, some twice
        assert set(seen) == set(range(10))


def test_eval_keeps_native_size_and_order(folders, ragged):
    rng = np.random.default_rng(0)
    masks = [rng.choice(np.array([0, 9, 255], dtype=np.uint8), (9, 12)) for _ in range(3)]
    images = [rng.integers(0, 256, (9, 12, 3), dtype=np.uint8) for _ in range(3)]
    for i, (mask, image) in enumerate(zip(masks, images, strict=True)):
        folders.add(f"{i}", mask, image)
    (first, second) = batches(eval_loader(find_samples(folders), ragged, batch_size=2, workers=0))
    assert torch.cat([first["index"], second["index"]]).tolist() == [0, 1, 2]
    assert np.array_equal(torch.cat([first["image"], second["image"]]).numpy(), np.stack(images).transpose(0, 3, 1, 2))
    known = {0: ragged.index_of("sky"), 9: ragged.index_of("shoes"), 255: IGNORE_INDEX}
    expected = np.vectorize(known.get)(np.stack(masks))
    assert np.array_equal(torch.cat([first["target"], second["target"]]).numpy(), expected)
    folders.add("3", np.zeros((8, 12), dtype=np.uint8))  # another size: one at a time
    sizes = [len(b["image"]) for b in batches(eval_loader(find_samples(folders), ragged, batch_size=2, workers=0))]
    assert sizes == [1, 1, 1, 1]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda sample: sample.image.unlink(), "{image} no longer exists. Restore it, or remove its pair."),
        (lambda sample: sample.mask.write_bytes(b""), "{mask} can't be read (cannot identify image file"),
    ],
    ids=["vanished", "broken"],
)
def test_a_file_that_goes_bad_is_named(samples, ragged, workers, spoil, message):
    loader = train_loader(samples, ragged, TRANSFORM, seed=SEED, batch_size=10, workers=workers)
    epoch_of(loader, 0)
    spoil(samples[6])
    with pytest.raises(DataError) as info:
        epoch_of(loader, 1)
    expected = message.format(image=samples[6].image, mask=samples[6].mask)
    assert str(info.value).startswith(expected) and "Traceback" not in str(info.value)


def test_dataset_refuses_what_a_fast_check_missed(folders, ragged):
    folders.add("a", np.array([[0, 17], [17, 33]], dtype=np.uint8))
    folders.add("b", np.zeros((4, 5), dtype=np.uint8), np.zeros((4, 6, 3), dtype=np.uint8))
    dataset = SegmentationDataset(find_samples(folders), ragged)
    with pytest.raises(DataError, match=r"a\.png has values that are not labels: 17 \(2 px\), 33 \(1 px\)"):
        dataset[0]
    with pytest.raises(DataError, match=r"b\.png is 4x5 px \(HxW\), its image .* is 4x6"):
        dataset[1]


class Deadly(SegmentationDataset):
    def __getitem__(self, key):
        os._exit(1)


def test_a_dead_worker_is_an_error_of_the_machine(samples, ragged):
    loader = torch.utils.data.DataLoader(Deadly(samples, ragged), num_workers=1)
    with pytest.raises(DeviceError, match=r"a data loading worker died .* set training\.workers lower") as info:
        list(batches(loader))
    assert info.value.exit_code == 4


def test_other_errors_pass_through():
    def broken():
        yield 1
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="^something else$"):
        list(batches(broken()))


@pytest.mark.parametrize(
    ("cpus", "device", "processes", "expected"),
    [(2, "cpu", 1, 0), (4, "cpu", 1, 1), (64, "cpu", 1, 4), (64, "cpu", 8, 2), (4, "cuda", 1, 3), (64, "cuda", 4, 8)],
)
def test_automatic_worker_count(monkeypatch, cpus, device, processes, expected):
    monkeypatch.setattr(loaders.os, "sched_getaffinity", lambda pid: set(range(cpus)), raising=False)
    assert num_workers("auto", device, processes) == expected
    assert num_workers(3, device, processes) == 3


def test_memory_is_pinned_for_cuda_only(samples, ragged):
    for device, pinned in (("cpu", False), ("mps", False), ("cuda", True)):
        assert (
            train_loader(samples, ragged, TRANSFORM, seed=SEED, batch_size=2, workers=0, device_type=device).pin_memory
            is pinned
        )
