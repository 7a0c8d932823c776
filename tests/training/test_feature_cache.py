"""Features of a frozen backbone: computed once, stored, and equal bit for bit to those that are computed every time."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from filelock import FileLock
from safetensors.torch import save_file

from seghiero_core.config.loading import load_config
from seghiero_core.data.sampler import EpochSampler
from seghiero_core.errors import ConfigError, DeviceError
from seghiero_core.model.segmentation import SegmentationModel
from seghiero_core.plugins.sources import Plugin
from seghiero_core.training import feature_cache, feature_filling, feature_key
from seghiero_core.training.dry_run import dry_run
from seghiero_core.training.interrupts import Interrupted
from seghiero_core.training.loop import train
from support.processes import torchrun
from support.runs import StopAt, assert_same, records, weights
from support.tiny import TINY, Tiny

FROZEN = [*TINY, "training.freeze=backbone", "training.augmentation_variants=2", "training.epochs=5"]
CACHED = [*FROZEN, "training.cache_features=true"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own for each test."""
    monkeypatch.setenv("SEGHIERO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


@pytest.fixture
def small(small):
    """Data that was written a while ago, so that its files have stamps."""
    for path in small.parent.rglob("*.png"):
        os.utime(path, (time.time() - 60,) * 2)
    return small


def run_of(small, name, options):
    """Train a run, and return its folder and its events."""
    events = []
    config = load_config(small, [*options, f"output.name={name}"])
    train(config, notify=events.append)
    return config.run_dir, {event["event"]: event for event in events}


def assert_equal_runs(a, b):
    assert_same(weights(a), weights(b))
    assert records(a) == records(b)


@pytest.mark.parametrize(
    "options",
    [
        [],
        [
            "backbone={type: resnet, depth: 18}",
            "head={type: aspp, proj_dim: 16}",
            "loss={preset: marginal, auxiliary: 0.4}",
        ],
        pytest.param(
            ["backbone={type: segformer}", "head={type: segformer, proj_dim: 16}", "training.precision=bf16"],
            marks=pytest.mark.slow,
        ),
        [
            "training.ema=0.9",
            "training.gradient_accumulation=2",
            "training.batch_size=1",
            "training.channels_last=false",
        ],
    ],
    ids=["tiny", "resnet with an auxiliary head", "bf16", "ema and accumulation"],
)
def test_cached_equals_live(small, options):
    live, _ = run_of(small, "live", [*FROZEN, *options])
    cached, events = run_of(small, "cached", [*CACHED, *options])
    assert_equal_runs(live, cached)
    assert events["start"]["features"]["samples"] == events["end"]["features"]["computed"] == 8


def test_a_vit_of_the_shape_of_dinov3_is_loaded_frozen_and_stored(small, tmp_path):
    """Its weights are made here; the neck that makes a pyramid of it learns, so the input of the neck is stored."""
    torch.manual_seed(1)
    vit = timm.create_model("vit_small_patch16_dinov3", num_classes=0, pretrained=False)
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    section = f"backbone={{type: timm, variant: vit_small_patch16_dinov3, pretrained: {tmp_path / 'vit.safetensors'}}}"
    options = [section, "head={type: linear}", "training.epochs=3"]
    live, _ = run_of(small, "live", [*FROZEN, *options])
    cached, events = run_of(small, "cached", [*CACHED, *options])
    assert_equal_runs(live, cached)
    assert not events["weights"]["unexpected"]
    after = weights(cached)
    for name, tensor in vit.state_dict().items():
        assert torch.equal(after[f"backbone.net.{name}"], tensor), name
    assert events["start"]["features"]["maps"] == [3]  # the linear head reads C4, made of the last layer


def test_the_backbone_runs_once_for_each_image_and_variant(small, monkeypatch):
    calls, forward = [], Tiny.forward

    def counted(self, x):
        calls.append(len(x))
        return forward(self, x)

    monkeypatch.setattr(Tiny, "forward", counted)
    numbers = []
    for name, options in (("live", FROZEN), ("first", CACHED), ("second", [*CACHED, "training.lr=0.1"])):
        calls.clear()
        run_of(small, name, options)
        numbers.append(len(calls))
    live, first, second = numbers
    assert first - second == 2 * 4  # the second run finds what the first has stored
    assert live - second == 5 * 4 - 1  # in 5 epochs of 4 images; 1 is for the size of the cache


def test_unread_maps_are_not_stored_and_take_no_memory(small, cache):
    live, _ = run_of(small, "live", [*FROZEN, "head={type: linear, stage: 2}"])
    cached, events = run_of(small, "cached", [*CACHED, "head={type: linear, stage: 2}"])
    assert_equal_runs(live, cached)
    assert events["start"]["features"]["maps"] == [1]
    stored = 8 * (8 * 8 * 8 * 4 + 48 * 64)  # C2 of the padded image in float32, and the target in a byte
    assert events["start"]["features"]["mib"] == stored / 2**20
    on_disk = sum(path.stat().st_size for path in cache.rglob("*.safetensors"))
    assert stored < on_disk < stored + 8 * 2000  # names, shapes and counts


class Reads(torch.nn.Module):
    """A head whose logits are those of C1, times what a function makes of [C1, C2, C3, C4]."""

    def __init__(self, function):
        super().__init__()
        self.classifier, self.function = torch.nn.Conv2d(8, 4, 1), function

    def forward(self, features):
        return self.classifier(features[0]) * self.function(features), None


@pytest.mark.parametrize(
    ("function", "maps"),
    [
        (lambda f: 1, [0]),
        (lambda f: f[1].mean() + f[3].relu().amax(), [0, 1, 3]),
        (lambda f: 1 + f[2].isnan().any(), [0, 2]),
        (lambda f: torch.where(f[2].mean() > 0, 2.0, 1.0), [0, 2]),
        (lambda f: 1.0 + f[3].mean((1, 2, 3)).argsort()[:, None, None, None], [0, 3]),
    ],
    ids=["nothing", "values", "NaN", "a comparison", "an order"],
)
def test_every_map_that_is_read_is_found(function, maps):
    torch.manual_seed(0)
    model = SegmentationModel(Tiny(), Reads(function), mean=[0.5] * 3, std=[0.2] * 3, stride=32)
    with torch.no_grad():
        features = model.features(255 * torch.rand(2, 3, 64, 64))
    assert feature_cache.find_maps_read(model, features, (64, 64)) == maps


def test_sources_with_weights_and_workers(small):
    shutil.copytree(small.parent / "train", small.parent / "more/train")
    sources = "[{name: a, weight: 1.5}, {name: b, root: more, val: null, weight: 0.7}]"
    options = [f"dataset={{train: train, val: val, sources: {sources}}}", "training.workers=2"]
    live, _ = run_of(small, "live", [*FROZEN, *options])
    cached, _ = run_of(small, "cached", [*CACHED, *options])
    assert_equal_runs(live, cached)


def test_a_run_that_is_killed_while_it_stores_goes_on(small, cache, monkeypatch):
    monkeypatch.setattr(feature_cache, "SHARD_BYTES", 1)  # a file for each sample
    whole, _ = run_of(small, "whole", FROZEN)
    config = load_config(small, [*CACHED, "output.name=parts"])
    child = os.fork()
    if not child:
        write = feature_filling.write_shard

        def write_three(folder, shard, samples):
            if len(list(folder.glob("*.safetensors"))) == 3:
                (folder / f".{shard.name}.safetensors.1").write_bytes(b"half")
                os.kill(os.getpid(), signal.SIGKILL)
            return write(folder, shard, samples)

        feature_filling.write_shard = write_three
        train(config)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    events = []
    train(config, resume=True, notify=events.append)
    assert events[-1]["features"]["computed"] == 5
    assert [event["done"] for event in events if event["event"] == "features"] == [3, 4, 5, 6, 7]
    assert_equal_runs(whole, config.run_dir)
    assert not list(cache.rglob(".*.safetensors.*"))


def test_a_stop_while_storing_and_a_stop_while_training_are_resumed_exactly(small, monkeypatch):
    monkeypatch.setattr(feature_cache, "SHARD_BYTES", 1)
    whole, _ = run_of(small, "whole", FROZEN)
    config = load_config(small, [*CACHED, "output.name=parts"])

    def stop_storing(event):
        if event["event"] == "features" and event["done"] == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match="stopped while features were stored; continue with --resume"):
        train(config, notify=stop_storing)
    with pytest.raises(Interrupted, match="stopped at step 5"):
        train(config, resume=True, notify=StopAt(5))
    train(config, resume=True)
    assert_equal_runs(whole, config.run_dir)


@pytest.mark.parametrize("damage", ["truncated", "altered", "removed"])
def test_damaged_files_are_stored_again(small, cache, monkeypatch, damage):
    monkeypatch.setattr(feature_cache, "SHARD_BYTES", 1)
    whole, _ = run_of(small, "whole", CACHED)
    path = sorted(cache.rglob("*.safetensors"))[2]
    content = path.read_bytes()
    if damage == "removed":
        path.unlink()
    else:
        altered = content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
        path.write_bytes(content[:-9] if damage == "truncated" else altered)
    events = []
    config = load_config(small, [*CACHED, "output.name=again"])
    train(config, notify=events.append)
    warnings = [event["text"] for event in events if event["event"] == "warning"]
    assert len(warnings) == (damage != "removed")
    assert all(f"the content of 1 of its files has changed, such as {path.name}" in text for text in warnings)
    assert events[-1]["features"]["computed"] == 1
    assert_equal_runs(whole, config.run_dir)
    assert path.read_bytes() == content


def test_what_the_features_depend_on_has_a_cache_of_its_own(small, cache):
    def folder_of(*options):
        name = f"run{len(list(small.parent.glob('runs/*')))}"
        _, events = run_of(small, name, [*CACHED, "training.epochs=1", *options])
        return events["start"]["features"]["folder"]

    first = folder_of()
    assert first.parent == cache
    assert folder_of("training.lr=0.1", "training.batch_size=1", "training.ema=0.5") == first
    others = [
        folder_of("training.seed=1"),
        folder_of("transform.flip=0"),
        folder_of("training.precision=bf16"),
        folder_of("classes.labels=[sky, grass, ring, disc]"),
    ]
    mask = small.parent / "train/masks/0.png"
    os.utime(mask, (time.time() - 30,) * 2)
    others.append(folder_of())
    assert len({first, *others}) == 6


def test_features_of_other_code_are_not_used(small, tmp_path, monkeypatch):
    def folder_of(name):
        return run_of(small, name, [*CACHED, "training.epochs=1"])[1]["start"]["features"]["folder"]

    file = tmp_path / "net.py"
    plugins = {
        "net": Plugin("net", file, registered=["backbone tiny"]),
        "other": Plugin("other", tmp_path / "other.py", registered=["head other"]),  # decides on no feature
    }
    monkeypatch.setattr(feature_key, "current_loader", lambda: SimpleNamespace(loaded=plugins))
    file.write_text("x = 1")
    folders = [folder_of("first")]
    file.write_text("x = 2")
    folders.append(folder_of("another plugin"))
    monkeypatch.setattr(feature_key, "version", lambda package: "0" if package == "timm" else version(package))
    folders.append(folder_of("another timm"))
    monkeypatch.setattr(feature_key, "__version__", "0")
    folders.append(folder_of("another seghiero"))
    assert len(set(folders)) == 4


def test_batch_size_auto(small):
    options = ["training.batch_size=auto", "training.epochs=2"]
    live, _ = run_of(small, "live", [*FROZEN, *options])
    cached, _ = run_of(small, "cached", [*CACHED, *options])
    assert_equal_runs(live, cached)


def test_variants_repeat_the_augmentation_but_not_the_order():
    sampler = EpochSampler([50], seed=3, variants=2)
    epochs = []
    for epoch in range(4):
        sampler.start_epoch(epoch)
        epochs.append(list(sampler))
    assert [epoch[0][0] for epoch in epochs] == [0, 1, 0, 1]
    assert sorted(epochs[0]) == sorted(epochs[2]) and epochs[0] != epochs[2]
    plain = EpochSampler([50], seed=3)
    plain.start_epoch(3)
    assert [(3, index, repeat) for _, index, repeat in epochs[3]] == list(plain)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["training.augmentation_variants=2"], "only if the backbone is frozen; set training.freeze: backbone"),
        (["training.freeze=backbone"], "every epoch has other images; set training.augmentation_variants"),
        (["training.freeze=3", "training.augmentation_variants=2"], "set training.freeze: backbone"),
    ],
)
def test_a_cache_that_makes_no_sense(small, options, message):
    with pytest.raises(ConfigError, match=f"training.cache_features: .*{message}"):
        load_config(small, [*options, "training.cache_features=true"])


def test_a_cache_that_is_too_large(small, cache, monkeypatch):
    def message(error, *options):
        with pytest.raises(error) as caught:
            run_of(small, "large", [*CACHED, *options])
        shutil.rmtree(small.parent / "runs")
        return str(caught.value)

    large = ["transform.size=[512, 512]", "training.cache_mib=5", "head={type: linear, stage: 1}"]
    text = message(ConfigError, *large)
    assert "take 6 MiB (0.75 MiB for each image and variant). That is more than 5" in text
    assert not cache.exists()
    run_of(small, "other", [*CACHED, "training.epochs=1"])
    (other,) = cache.iterdir()
    (other / "more.safetensors").write_bytes(bytes(3 * 2**20))
    text = message(ConfigError, *large[:1], "training.cache_mib=8", large[2])
    assert f"those of other runs in {cache} take 3 MiB (delete what you don't need; {other.name}" in text
    monkeypatch.setattr(feature_filling.shutil, "disk_usage", lambda folder: SimpleNamespace(free=2**20))
    text = message(DeviceError, *large[:1], "training.cache_mib=80", large[2])
    assert "the features take 6 MiB, and the disk has 1 MiB left" in text
    monkeypatch.setenv("SEGHIERO_CACHE", "off")
    assert "SEGHIERO_CACHE is 'off'" in message(DeviceError)


def test_a_disk_that_is_full(small, cache, monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DeviceError, match="the disk is full, while features were stored. Free some space"):
        run_of(small, "full", CACHED)
    assert not list(cache.rglob("*.safetensors*"))


def test_another_run_that_stores_the_same_features_is_waited_for(small, cache):
    _, events = run_of(small, "first", CACHED)
    lock = FileLock(events["start"]["features"]["folder"] / ".lock")
    lock.acquire()
    texts = []

    def release(event):
        if event["event"] == "warning":
            texts.append(event["text"])
            lock.release()

    train(load_config(small, [*CACHED, "output.name=second"]), notify=release)
    assert len(texts) == 1 and "another run stores the same features" in texts[0]


@pytest.mark.slow
def test_two_processes_store_and_read_the_same(small, cache):
    """Each has half of the files; what they learn is what two processes learn that compute the features every time."""
    runs = []
    for name, options in (("live", FROZEN), ("cached", CACHED)):
        options = [*options, "training.batch_size=1", f"output.name={name}"]
        done = torchrun(small, *options, SEGHIERO_CACHE=str(cache.parent))
        assert done.returncode == 0, done.stderr[-3000:]
        runs.append(small.parent / "runs" / name)
    assert_equal_runs(*runs)
    assert "features: 4 feature maps of each of 8 augmented images" in done.stderr


def test_a_dry_run_counts_the_storing_and_writes_nothing(small, cache, run, monkeypatch):
    forward = Tiny.forward

    def slow(self, x):
        time.sleep(0.1)  # the time of a step depends on it alone, however busy the machine is
        return forward(self, x)

    monkeypatch.setattr(Tiny, "forward", slow)
    config = load_config(small, [*CACHED, "training.epochs=1000"])
    facts, live = dry_run(config), dry_run(load_config(small, [*FROZEN, "training.epochs=1000"]))
    assert facts["features_mib"] > live["features_mib"] == 0
    assert facts["seconds_per_step"] < live["seconds_per_step"]
    assert not cache.exists() and not config.output.dir.exists()
    words = [word for option in CACHED for word in ("--set", option)]
    code, out, _ = run("train", small, "--dry-run", *words)
    assert code == 0 and "MiB on the disk, stored before the first step" in out


def test_a_neck_that_is_no_step_of_its_own_is_refused(small, monkeypatch):
    class Necked(Tiny):
        def __init__(self):
            super().__init__()
            self.neck = torch.nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return super().forward(self.neck(x))

    monkeypatch.setattr("support.tiny.Tiny", Necked)
    run_of(small, "live", FROZEN)
    with pytest.raises(ConfigError, match="the neck of backbone 'tiny' learns, so its input has to be stored"):
        run_of(small, "cached", CACHED)
