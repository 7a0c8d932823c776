"""What is collected of single images: their own measures, their confusions and their pictures."""

from __future__ import annotations

import base64
import io
import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from seghiero_core.evaluation import images as images_module
from seghiero_core.evaluation import pictures
from seghiero_core.evaluation.images import ImageCollector
from seghiero_core.hierarchy.tree import IGNORE_INDEX, Hierarchy

RAGGED = {
    "labels": {0: "sky", 2: "boots", 5: "flats", 9: "shoes", 300: "hat", 7: ["boots", "hat"], 8: ["sky", "hat"]},
    "tree": {"sky": None, "clothes": {"shoes": ["boots", "flats"], "hat": None}},
}


@pytest.fixture(scope="module")
def hierarchy():
    return Hierarchy.from_config(RAGGED)


def random_image(hierarchy, seed, size=(31, 47)):
    """An image, its target, and predictions that needn't be consistent and may back off."""
    rng = np.random.default_rng(seed)
    labels = len(hierarchy) + len(hierarchy.sets)
    target = rng.integers(IGNORE_INDEX, labels, size)
    ids = [rng.integers(-1, len(level.nodes), size) for level in hierarchy.levels]
    right = rng.random(size) < rng.random()
    for level, each in enumerate(ids):
        truth = true_classes(target, level, hierarchy)
        each[right & (truth >= 0)] = truth[right & (truth >= 0)]
    image = rng.integers(0, 256, (3, *size), dtype=np.uint8)
    return image, target, ids


def true_classes(target, level, hierarchy):
    """The class of each label at a level, from the tree's names alone."""
    classes = {IGNORE_INDEX: -1}
    names = hierarchy.level_names(level)
    groups = [*({i} for i in range(len(hierarchy))), *map(set, hierarchy.sets)]
    for label, members in enumerate(groups):
        above = [{hierarchy.nodes[node] for node in (member, *hierarchy.ancestors(member))} for member in members]
        shared = set.intersection(*above)
        classes[label] = next((i for i, name in enumerate(names) if name in shared), -1)
    return np.vectorize(classes.get)(target)


def collect(hierarchy, samples, count=None):
    collector = ImageCollector(hierarchy, count or len(samples))
    for index, (image, target, ids) in enumerate(samples):
        collector.add(index, *tensors(image, target, ids))
    return collector


def tensors(image, target, ids):
    return torch.from_numpy(image), torch.from_numpy(target), [torch.from_numpy(each) for each in ids]


def describe(index):
    return {"name": f"{index}.png"}


def pixels(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB")).astype(int)


def test_every_number_of_an_image_equals_a_count_of_its_pixels(hierarchy):
    samples = [random_image(hierarchy, seed, (20 + seed, 30 - seed)) for seed in range(9)]
    samples.append((*samples[0][:1], np.full_like(samples[0][1], IGNORE_INDEX), samples[0][2]))  # nothing labeled
    document = collect(hierarchy, samples).document(describe)
    assert [image["name"] for image in document["images"]] == [f"{i}.png" for i in range(10)]
    expected_cells = [{} for _ in hierarchy.levels]
    for i, (found, (image, target, ids)) in enumerate(zip(document["images"], samples, strict=True)):
        assert (found["height"], found["width"]) == image.shape[1:]
        for level, predicted in enumerate(ids):
            truth = true_classes(target, level, hierarchy)
            counted, right = truth >= 0, (truth >= 0) & (truth == predicted)
            ious = []
            for number in range(len(hierarchy.levels[level].nodes)):
                both = (truth == number) & (predicted == number)
                either = counted & ((truth == number) | (predicted == number))
                ious += [both.sum() / either.sum()] if either.any() else []
            assert found["miou"][level] == (pytest.approx(np.mean(ious)) if ious else None)
            accuracy = right.sum() / counted.sum() if counted.any() else None
            assert found["pixel_accuracy"][level] == (None if accuracy is None else pytest.approx(accuracy))
            wrong = {}
            for pair in zip(truth[counted & ~right].tolist(), predicted[counted & ~right].tolist(), strict=True):
                wrong[pair] = wrong.get(pair, 0) + 1
            cells = {(a, b): count for a, b, count in found["confusion"][level]}
            assert cells == wrong and len(wrong) <= 20
            assert [count for *_, count in found["confusion"][level]] == sorted(wrong.values(), reverse=True)
            for (a, b), count in wrong.items():
                expected_cells[level].setdefault(f"{a},{b}", []).append([i, count])
    for found, expected in zip(document["cells"], expected_cells, strict=True):
        assert found == {cell: sorted(each, key=lambda pair: -pair[1])[:6] for cell, each in expected.items()}
    assert any("-1" in cell.split(",") for cell in document["cells"][0]) and any(
        len(each) > 6 for each in expected_cells[0].values()
    )


@pytest.mark.parametrize(("size", "shown"), [((24, 40), (24, 40)), ((130, 650), (64, 320)), ((700, 3), (320, 1))])
def test_pictures_hold_the_classes_of_every_level(hierarchy, size, shown):
    samples = [random_image(hierarchy, seed, size) for seed in range(2)]
    document = collect(hierarchy, samples).document(describe)
    rows, columns = (((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(shown, size, strict=True))
    codes = np.array(document["codes"])
    assert len({*map(tuple, document["codes"])}) == len(codes)
    for found, (_, target, ids) in zip(document["images"], samples, strict=True):
        assert pixels(found["picture"]).shape == (*shown, 3)
        truth = [true_classes(target, level, hierarchy) for level in range(len(ids))]
        for name, maps in (("truth", truth), ("prediction", ids)):
            code = pixels(found[name]) @ (1, 256, 65536)
            for level, expected in enumerate(maps):
                assert (codes[code][..., level] == expected[rows][:, columns]).all()


def test_pictures_hold_more_classes_than_a_palette():
    hierarchy = Hierarchy.from_config({"labels": [f"c{i}" for i in range(400)], "ignore": 999})
    rng = np.random.default_rng(0)
    target, ids = np.arange(800).reshape(20, 40) % 400, rng.integers(0, 400, (20, 40))
    document = collect(hierarchy, [(np.zeros((3, 20, 40), np.uint8), target, [ids])]).document(describe)
    code = pixels(document["images"][0]["prediction"]) @ (1, 256, 65536)
    assert (np.array(document["codes"])[code][..., 0] == ids).all() and code.max() > 255


@pytest.mark.parametrize("most", [2**62, 3])
def test_combinations_of_classes_are_told_apart_whatever_their_number(monkeypatch, most):
    monkeypatch.setattr(pictures, "_MOST_KEYS", most)
    classes = np.array([*itertools.product([-1, 0, 5], [-1, 2], [-1, 0, 1, 7])] * 2).T
    keys = pictures._keys(classes)
    assert len({*keys.tolist()}) == 24 and (keys[:24] == keys[24:]).all()


@pytest.mark.parametrize("processes", [1, 3])
def test_of_a_large_set_the_worst_the_best_and_evenly_spaced_images_stay(hierarchy, monkeypatch, processes):
    for name, value in (("MOST_IMAGES", 10), ("_WORST", 5), ("_BEST", 3), ("_SPACED", 4)):
        monkeypatch.setattr(images_module, name, value)
    samples = [random_image(hierarchy, seed, (6, 9)) for seed in range(40)]
    samples[7][1][:] = samples[20][1][:] = IGNORE_INDEX  # without a mIoU; 20 is one of the evenly spaced
    shares = [ImageCollector(hierarchy, 40) for _ in range(processes)]
    for index, sample in enumerate(samples):
        shares[index % processes].add(index, *tensors(*sample))
        assert len(shares[index % processes].found) <= 12
    gathered = [image for share in shares for image in share.found.values()]
    monkeypatch.setattr(images_module, "gather_object", lambda own: gathered)
    shares[-1].gather()
    monkeypatch.undo()
    everything = collect(hierarchy, samples).found
    scores = {
        i: np.mean([m for m in image.miou if m is not None]) for i, image in everything.items() if i not in (7, 20)
    }
    ranked = sorted(scores, key=scores.get)
    assert sorted(shares[-1].found) == sorted({*ranked[:5], *ranked[-3:], 0, 10, 20, 30})
