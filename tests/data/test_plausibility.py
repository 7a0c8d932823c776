from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from seghiero_core.config.schema import TransformConfig
from seghiero_core.data.audit import Audit
from seghiero_core.data.augmentation import draw_augmentation
from seghiero_core.data.encoded import Pair, encoded_reader
from seghiero_core.data.facts import Facts
from seghiero_core.data.plausibility import data_warnings
from seghiero_core.data.samples import samples_of
from seghiero_core.hierarchy.tree import Hierarchy

SMALL_CROPS = TransformConfig(size=(8, 8))


def samples_of_files(files):
    return tuple(samples_of(encoded_reader([Pair(image, mask, image.name) for image, mask in files])))


def found(pixels=(5, 5), ignored=0, sizes=None, names=("a.png",), folder="x", values=None, facts=(), **others):
    """An audit of images of one size; `facts` are further keywords of the facts of the first images."""
    samples = samples_of_files((Path(folder, name), Path("masks", name)) for name in names)
    known = [Facts((16, 16), {}, **each) for each in [*facts, *[{}] * (len(samples) - len(facts))]]
    sizes = sizes or {(16, 16): len(samples)}
    audit = Audit(samples, sizes, len(samples), np.array(pixels), ignored, values or {}, tuple(known))
    return replace(audit, **others)


def findings_of(audit, labels=("background", "car"), ignore=255, transform=SMALL_CROPS, **others):
    hierarchy = Hierarchy.from_config({"labels": labels, "ignore": ignore})
    dataset = SimpleNamespace(sources=None, bands=None)
    config = SimpleNamespace(hierarchy=hierarchy, transform=transform, dataset=dataset)
    return data_warnings(config, {"train": audit, **others})


def warnings_of(*args, **others):
    return {split: [str(each) for each in found] for split, found in findings_of(*args, **others).items()}


def test_what_is_fine_gives_no_warning():
    for audit in (found(), found((5, 5), ignored=100), found((10, 0)), found((96, 2, 0), ignored=5)):
        labels = ("background", "car", "bus")[: len(audit.pixels)]
        assert warnings_of(audit, labels, val=found(audit.pixels, folder="y")) == {"train": [], "val": []}


@pytest.mark.parametrize(
    ("pixels", "labels", "ignore", "expected"),
    [
        ((98, 0), ["background", "car"], 255, "labels: {0: background, 255: car} and ignore: 254."),
        ((98, 0), {0: "background", 254: "car"}, 255, "labels: {0: background, 255: car} and ignore: 254."),
        ((0, 98), {1: "background", 2: "no"}, 0, "labels: {0: background, 2: 'no'} and ignore: 255."),
        ((10, 5, 0), ["sky", "road", "car"], 7, "labels: {0: sky, 1: road, 7: car} and ignore: 255."),
    ],
)
def test_an_ignore_value_that_is_probably_a_label(pixels, labels, ignore, expected):
    (text,) = warnings_of(found(pixels, ignored=2), labels, ignore)["train"]
    assert text.endswith(expected) and f"(value {ignore})" in text
    section = yaml.safe_load("{" + text.partition("write ")[2].rstrip(".").replace(" and ignore", ", ignore") + "}")
    assert set(Hierarchy.from_config(section).leaves) == set(labels.values() if isinstance(labels, dict) else labels)


def test_the_changed_label_is_shown_whatever_its_value():
    names = [f"c{i}" for i in range(300)]
    (text,) = warnings_of(found([9] * 16 + [0, 9, 9], ignored=99), names[:19])["train"]
    assert text.endswith("labels: {0: c0, 1: c1, 2: c2, 3: c3, 4: c4, 5: c5, ..., 255: c16} and ignore: 254.")
    (text,) = warnings_of(found([0] + [9] * 18, ignored=99), {2 * i: name for i, name in enumerate(names[:19])}, 19)[
        "train"
    ]
    assert text.endswith("labels: {2: c1, 4: c2, 6: c3, 8: c4, 10: c5, 12: c6, ..., 19: c0, ...} and ignore: 255.")


def test_labels_that_are_sets_are_written_as_lists():
    labels = {0: "sky", 1: "a", 2: "b", 3: ["a", "b"], 4: "c"}
    (text,) = warnings_of(found((9, 9, 9, 0, 9), ignored=99), labels)["train"]
    assert text.endswith("labels: {0: sky, 1: a, 2: b, 3: [a, b], 255: c} and ignore: 254.")


def test_16_bit_labels_with_an_ignore_value_that_is_probably_one_of_them():
    names = [f"c{i}" for i in range(300)]
    (text,) = warnings_of(found([9] * 280 + [0] + [9] * 19, ignored=999), names, 65535)["train"]
    assert text.endswith("..., 65535: c280} and ignore: 65534.")


@pytest.mark.parametrize(("labels", "ignore"), [(["a", "b"], 255), ({1: "a", 2: "b"}, 0), (["a", "b", "c"], 255)])
def test_labels_that_only_one_split_lacks_are_no_reason_to_doubt_the_ignore_value(labels, ignore):
    common = (9,) * (len(labels) - 1)
    lacking, complete = found((*common, 0), ignored=99), found((*common, 1), ignored=99, folder="y")
    rare = findings_of(lacking, labels, ignore, val=complete)
    assert [each.kind for each in rare["train"]] == ["rare_class"] and rare["val"] == []
    assert warnings_of(complete, labels, ignore, val=lacking) == {"train": [], "val": []}
    both = warnings_of(lacking, labels, ignore, val=found((*common, 0), ignored=99, folder="y"))
    assert [len(texts) for texts in both.values()] == [1, 1]


def test_masks_without_a_label():
    (text,) = warnings_of(found((0, 0), ignored=9))["train"]
    assert text.startswith("every pixel is ignored: all masks hold only 255, the value of classes.ignore. Set ")


def test_what_the_audit_recorded():
    paths = tuple(Path("images", f"{i}.png") for i in range(5))
    facts = [{"turned": True, "peak": peak} for peak in (4095, 17, 0, None, None)]
    turned, dark = warnings_of(found(names=paths, folder="", facts=facts))["train"]
    assert turned.startswith(
        "image and mask have different EXIF orientations (5 of 5 pairs): 0.png, 1.png, 2.png and 2 more in images."
    )
    assert dark.startswith(
        "16-bit images have no value above 4095 of 65535 (3 of 5): 0.png, 1.png, 2.png in images. They are read by"
    )
    bright = [{"peak": peak} for peak in (4095, 17, 0, 40_000)]
    assert warnings_of(found(names=paths, folder="", facts=bright))["train"] == []


def test_the_same_images_in_two_splits(tmp_path):
    def split(folder, names):
        return found((5, 5), names=names, folder=folder)

    (tmp_path / "a").mkdir()
    for name in ("1.png", "2.png", "3.png"):
        (tmp_path / "a" / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "a", target_is_directory=True)
    texts = warnings_of(
        split(tmp_path / "a", ("1.png", "2.png")),
        val=split(tmp_path / "link", ("1.png", "2.png")),
        test=split(tmp_path / "a", ("2.png", "3.png")),
    )
    assert texts["train"] == []
    assert texts["val"][0].startswith("all images are also in train: 1.png, 2.png in ")
    assert texts["test"][0].startswith("1 of 2 images are also in train: 2.png in ")


def test_links_to_one_image_are_no_images_in_several_sources(tmp_path):
    (tmp_path / "2.png").symlink_to(tmp_path / "1.png")
    pairs = samples_of_files((tmp_path / name, tmp_path / "mask.png") for name in ("1.png", "2.png"))
    assert warnings_of(found(names=("1.png", "2.png"), samples=pairs))["train"] == []


@pytest.mark.parametrize(
    ("size", "scale", "sizes", "warns"),
    [
        ((96, 96), (0.5, 2.0), {(64, 64): 1}, True),
        ((96, 128), (0.5, 2.0), {(64, 64): 3, (96, 127): 1}, True),
        ((96, 96), (0.5, 2.0), {(64, 64): 9, (96, 96): 1}, False),
        ((96, 96), (0.5, 2.0), {(64, 200): 1}, False),
    ],
)
def test_crops_larger_than_every_image(size, scale, sizes, warns):
    transform = TransformConfig(size=size, scale=scale)
    audit = found(sizes=sizes, names=[str(i) for i in range(sum(sizes.values()))])
    texts = warnings_of(audit, transform=transform)["train"]
    assert len(texts) == warns
    if warns:
        rng = np.random.default_rng(0)
        drawn = [draw_augmentation(rng, s, transform) for s, count in sizes.items() for _ in range(500 * count)]
        padding = 100 * (1 - np.mean([np.prod(params.resized) / np.prod(size) for params in drawn]))
        named = float(texts[0].partition("on average ")[2].partition(" %")[0])
        assert abs(named - padding) < 3


def kinds_of(*args, **others):
    return {split: [each.kind for each in texts] for split, texts in findings_of(*args, **others).items()}


@pytest.mark.parametrize(("odd", "count", "warns"), [(1, 20, True), (1, 19, False), (2, 20, False), (15, 300, True)])
def test_images_that_differ_in_size_from_nearly_all_others(odd, count, warns):
    names = [f"{i}.png" for i in range(count)]
    facts = tuple(Facts((16, 17) if i < odd else (16, 16), {}) for i in range(count))
    audit = replace(found(names=names, sizes={(16, 17): odd, (16, 16): count - odd}), facts=facts)
    findings = findings_of(audit)["train"]
    assert [each.kind for each in findings] == ["odd_size"] * warns
    assert not warns or findings[0].files == tuple(sample.image for sample in audit.samples[:odd])


def test_one_odd_size_is_judged_by_all_splits():
    facts = (Facts((20, 20), {}),)
    odd = replace(found(sizes={(20, 20): 1}, folder="y"), facts=facts)
    assert kinds_of(found(names=[f"{i}.png" for i in range(40)]), val=odd) == {"train": [], "val": ["odd_size"]}


@pytest.mark.parametrize(
    ("means", "warns"),
    [
        ([(124, 116, 104)], False),
        ([(66, 60, 47), (66, 60, 47)], False),
        ([(64, 116, 104)], True),
        ([(124, 116, 162)], True),
        ([(0, 0, 0), (248, 232, 208)], False),  # far from it, but not on average
    ],
)
def test_images_far_from_imagenet(means, warns):
    names = [f"{i}.png" for i in range(len(means))]
    audit = found(names=names, facts=[{"mean": mean} for mean in means])
    assert kinds_of(audit) == {"train": ["image_mean"] * warns}


@pytest.mark.parametrize(
    ("train", "val", "warns"),
    [((9999, 1), (5, 5), False), ((99999, 9), (5, 5), True), ((9, 0), (5, 5), True), ((9, 0), (5, 0), False)],
)
def test_leaves_with_few_pixels_to_train_on(train, val, warns):
    assert kinds_of(found(train), val=found(val, folder="y"))["train"] == ["rare_class"] * warns
    assert kinds_of(replace(found(train), decoded=0), val=found(val, folder="y"))["train"] == []  # a fast check


def test_equal_bytes_in_two_splits():
    a, b, c = ([{"digest": digest} for digest in text] for text in ("xxy", "zy", "xz"))
    names = ["1.png", "2.png", "3.png"]
    texts = warnings_of(
        found(names=names, folder="a", facts=a),
        val=found(names=names[:2], folder="b", facts=b),
        test=found(names=names[:2], folder="c", facts=c),
    )
    assert texts["train"] == []
    assert [text.partition(". ")[0] for text in texts["val"]] == [
        "1 of 2 images have the same bytes as images in train: 2.png (same as a/3.png) in b"
    ]
    assert [text.partition(". ")[0] for text in texts["test"]] == [
        "1 of 2 images have the same bytes as images in train: 1.png (same as a/1.png) in c",
        "1 of 2 images have the same bytes as images in val: 2.png (same as b/1.png) in c",
    ]


@pytest.mark.parametrize(
    ("labels", "ignore", "values", "kinds"),
    [
        (["a", "b", "c"], 255, {0: 5, 255: 5}, ["binary_masks"]),
        (["a", "b"], 255, {0: 5, 255: 5}, ["binary_masks"]),
        (["a", "b", "c"], 255, {0: 5, 1: 1, 255: 5}, ["ignored_label"]),
        (["a", "b", "c"], 7, {0: 5, 7: 5}, []),
    ],
)
def test_masks_of_0_and_255(labels, ignore, values, kinds):
    pixels = [values.get(i, 0) for i in range(len(labels))]
    assert kinds_of(found(pixels, values[ignore], values=values), labels, ignore) == {"train": kinds}
