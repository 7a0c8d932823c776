from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from seghiero_core.data import synthetic
from seghiero_core.hierarchy.tree import Hierarchy


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    synthetic.write_data_set(folder)
    return folder


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(str(f.relative_to(folder)), hashlib.sha256(f.read_bytes()).hexdigest()) for f in files]


def test_files_and_sizes(rendered):
    for split, count in synthetic.IMAGES_PER_SPLIT.items():
        images, masks = (sorted((rendered / split / kind).iterdir()) for kind in ("images", "masks"))
        assert [f.stem for f in images] == [f.stem for f in masks] and len(images) == count
        for image, mask in zip(images[:3], masks[:3], strict=True):
            with Image.open(image) as picture, Image.open(mask) as labels:
                assert (picture.mode, labels.mode) == ("RGB", "L")
                assert picture.size == labels.size == (synthetic.WIDTH, synthetic.HEIGHT)


def test_same_seed_same_bytes_other_seed_other_pictures(rendered, tmp_path):
    synthetic.write_data_set(tmp_path / "again")
    synthetic.write_data_set(tmp_path / "other", seed=1)
    assert digest(tmp_path / "again") == digest(rendered)
    assert all(a != b for a, b in zip(digest(tmp_path / "other"), digest(rendered), strict=True))


def test_every_leaf_is_large_enough_to_learn_and_to_measure(rendered):
    for split in synthetic.IMAGES_PER_SPLIT:
        masks = np.stack([np.array(Image.open(f)) for f in (rendered / split / "masks").iterdir()])
        shares = np.bincount(masks.ravel(), minlength=len(synthetic.LABELS)) / masks.size
        assert len(shares) == len(synthetic.LABELS) and shares.min() > 0.015
        assert all((masks == i).any(axis=(1, 2)).mean() > 0.25 for i in range(len(synthetic.LABELS)))


def test_color_alone_does_not_tell_the_classes(rendered):
    """The best guess from one pixel's color (512 bins, fitted on train, scored on val) stays far from 0.7."""

    def pixels(split):
        files = sorted((rendered / split / "images").iterdir())
        colors = np.concatenate([np.array(Image.open(f)).reshape(-1, 3) for f in files]).astype(np.int64) // 32
        masks = [np.array(Image.open(rendered / split / "masks" / f"{f.stem}.png")).ravel() for f in files]
        return colors @ [64, 8, 1], np.concatenate(masks)

    counts = np.zeros((512, 9))
    np.add.at(counts, pixels("train"), 1)
    colors, labels = pixels("val")
    guess = counts.argmax(axis=1)[colors]
    hits = np.bincount(labels[guess == labels], minlength=9)
    iou = hits / (np.bincount(labels, minlength=9) + np.bincount(guess, minlength=9) - hits)
    assert iou.mean() < 0.65 and iou[4:].mean() < 0.6, iou


def test_mixed_data_set_has_coarse_masks_of_the_same_scenes(rendered, tmp_path, monkeypatch):
    """Scene n of `train` is the same in both data sets; its coarse mask says what its fine one says, or nothing."""
    monkeypatch.setattr(synthetic, "MIXED_IMAGES", {"fine": 1, "coarse": 3, "unlabeled": 1, "val": 1})
    synthetic.write_mixed_data_set(tmp_path)
    assert sorted(str(f.relative_to(tmp_path)) for f in tmp_path.rglob("*.*")) == [
        *(f"coarse/train/images/{n:03}.jpg" for n in (1, 2, 3)),
        *(f"coarse/train/masks/{n:03}_coarse.png" for n in (1, 2, 3)),
        *("fine/train/images/000.jpg", "fine/train/masks/000.png", "fine/val/images/000.jpg", "fine/val/masks/000.png"),
        "unlabeled/train/images/004.jpg",
    ]
    for name in ("fine/train/masks/000.png", "fine/val/images/000.jpg", "unlabeled/train/images/004.jpg"):
        same = rendered / name.replace("fine/", "").replace("unlabeled/", "")
        assert (tmp_path / name).read_bytes() == same.read_bytes()
    hierarchy = Hierarchy.from_config({"labels": list(synthetic.LABELS), "tree": synthetic.TREE})
    leaves = {
        value: {
            int(leaf)
            for name in ([names] if isinstance(names, str) else names)
            for leaf in np.flatnonzero(hierarchy.covers[hierarchy.index_of(name), : len(synthetic.LABELS)])
        }
        for value, names in synthetic.COARSE_LABELS.items()
    }
    used = set()
    for n in (1, 2, 3):
        fine = np.array(Image.open(rendered / "train" / "masks" / f"{n:03}.png"))
        coarse = np.array(Image.open(tmp_path / "coarse" / "train" / "masks" / f"{n:03}_coarse.png"))
        assert coarse.shape == fine.shape
        ignored = coarse == synthetic.COARSE_IGNORE
        assert 0.01 < ignored.mean() < 0.25
        for value in set(np.unique(coarse).tolist()) - {synthetic.COARSE_IGNORE}:
            used.add(value)
            assert set(np.unique(fine[coarse == value]).tolist()) <= leaves[value]
        inside = coarse[1:-1, 1:-1]
        for other in (coarse[:-2, 1:-1], coarse[2:, 1:-1], coarse[1:-1, :-2], coarse[1:-1, 2:]):
            assert ((inside == other) | (inside == 0) | (other == 0)).all()  # two labels never touch
    assert used == set(synthetic.COARSE_LABELS)


def test_tree_has_three_levels_and_a_leaf_higher_up():
    hierarchy = Hierarchy.from_config({"labels": list(synthetic.LABELS), "tree": synthetic.TREE})
    assert len(hierarchy.levels) == 3 and set(hierarchy.leaves) == set(synthetic.LABELS)
    assert set(hierarchy.depths[: len(hierarchy.leaves)].tolist()) == {1, 2, 3}


def test_the_torch_free_part_stays_torch_free():
    names = ["samples", "images", "audit", "synthetic"]
    code = "import sys\n" + "".join(f"import seghiero_core.data.{name}\n" for name in names)
    code += "import seghiero_core.scaffold.starter, seghiero_core.figures\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
