"""`seghiero data split`: lists for those who have no validation set, and configs that read them."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from seghiero_core.config.loading import load_config
from seghiero_core.data.samples import split_samples
from seghiero_core.data.split import divide

CLASSES = {"labels": ["sky", "road", "car"]}


def write_set(root: Path, videos: list[int], suffix: str = "") -> None:
    """Videos with so many frames each; `car` is in every third."""
    rng = np.random.default_rng(0)
    for number, frames in enumerate(videos):
        for frame in range(frames):
            mask = rng.choice(np.array([0, 1, 2 if number % 3 == 0 else 1, 255], np.uint8), (8, 8))
            for kind, end, array in (("images", "", np.zeros((8, 8, 3), np.uint8)), ("masks", suffix, mask)):
                path = root / kind / f"town/video{number}_{frame:03}{end}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)


def save_config(path: Path, dataset: dict) -> Path:
    path.write_text(yaml.safe_dump({"dataset": dataset, "classes": CLASSES}, sort_keys=False))
    return path


@pytest.fixture
def project(tmp_path) -> Path:
    """A config with 40 training images of 10 videos, and no validation set."""
    write_set(tmp_path / "data", [4] * 10)
    return save_config(tmp_path / "cfg.yaml", {"root": "data", "train": {"images": "images", "masks": "masks"}})


def names_of(path: Path) -> list[str]:
    return path.read_text().splitlines()


def use_printed(project: Path, out: str) -> None:
    """Replace the `dataset` section by the one that the command printed."""
    printed = yaml.safe_load(out[out.index("\ndataset:") :])
    document = yaml.safe_load(project.read_text())
    document["dataset"] |= printed["dataset"]
    project.write_text(yaml.safe_dump(document))


def test_lists_share_the_images_out_and_the_config_reads_them(run, project):
    before = sorted(project.parent.rglob("*.png"))
    code, out, err = run("data", "split", project, "--val", 0.25, "--by-group", r"video(\d+)_")
    assert (code, err) == (0, "") and sorted(project.parent.rglob("*.png")) == before
    lists = {split: names_of(project.parent / f"{split}.txt") for split in ("train", "val")}
    names = sorted(
        path.relative_to(project.parent / "data/images").as_posix() for path in before if "images" in path.parts
    )
    assert sorted(lists["train"] + lists["val"]) == names and all(found == sorted(found) for found in lists.values())
    videos = {split: {name.partition("_")[0] for name in found} for split, found in lists.items()}
    assert not videos["train"] & videos["val"] and len(videos["val"]) in (2, 3)
    use_printed(project, out)
    config = load_config(project)
    for split, found in lists.items():
        assert [sample.name for sample in split_samples(config.dataset, split)] == found
    assert run("data", "check", project)[0] == 0


def test_what_is_printed_equals_a_count(run, project):
    code, out, _ = run("data", "split", project, "--test", 0.1, "--json")
    (document,) = json.loads(out)
    assert code == 0 and document["source"] is None and document["lacking"] == {}
    total = Counter()
    for split, found in document["splits"].items():
        names = names_of(Path(found["list"]))
        masks = [np.asarray(Image.open(project.parent / "data/masks" / name)) for name in names]
        counts = Counter(np.concatenate([mask.ravel() for mask in masks]).tolist())
        assert found["images"] == found["groups"] == len(names)
        assert found["pixels"] == {name: counts[value] for value, name in enumerate(CLASSES["labels"])}
        assert found["config"]["images"] == "images" and found["config"]["list"].endswith(f"{split}.txt")
        total.update(found["pixels"])
    for split, share in (("train", 0.7), ("val", 0.2), ("test", 0.1)):
        for name, pixels in document["splits"][split]["pixels"].items():
            assert abs(pixels / total[name] - share) < 0.04
    text = run("data", "split", project, "--test", 0.1, "--force")[1]
    row = re.search(r"^car +([\d.]+) +([\d.]+) +([\d.]+)$", text, re.MULTILINE)
    assert [float(cell) for cell in row.groups()] == [
        pytest.approx(100 * document["splits"][split]["pixels"]["car"] / total["car"], abs=0.06)
        for split in ("train", "val", "test")
    ]
    assert re.search(r"^images +28 \(70\.0\) +8 \(20\.0\) +4 \(10\.0\)$", text, re.MULTILINE)


def test_classes_that_a_split_lacks_are_named(run, tmp_path):
    write_set(tmp_path, [2, 2, 2])  # cars are in the first video alone
    cfg = save_config(tmp_path / "cfg.yaml", {"train": {"images": "images", "masks": "masks"}})
    out = run("data", "split", cfg, "--by-group", "video.")[1]
    lacking = "val" if any("video0" in name for name in names_of(tmp_path / "train.txt")) else "train"
    assert f"{lacking} has no pixel of: car\n" in out


def test_nothing_is_overwritten_without_being_asked(run, project, tmp_path):
    (tmp_path / "val.txt").write_text("mine")
    code, out, err = run("data", "split", project)
    assert (code, out) == (2, "") and f"{tmp_path / 'val.txt'} already exists, nothing was written" in err
    assert (tmp_path / "val.txt").read_text() == "mine" and not (tmp_path / "train.txt").exists()
    assert run("data", "split", project, "--out", tmp_path / "lists")[0] == 0
    first = names_of(tmp_path / "lists/val.txt")
    assert run("data", "split", project, "--force")[0] == 0 and names_of(tmp_path / "val.txt") == first
    assert run("data", "split", project, "--force", "--seed", 1)[0] == 0 and names_of(tmp_path / "val.txt") != first


def test_what_split_refuses(run, project):
    folder = project.parent / "data/images/town"
    for words, code, text in (
        (("--by-group", "video(1)_"), 3, "--by-group video(1)_: 36 of 40 names don't match: town/video0_000.png, "),
        (("--by-group", "(video"), 2, "--by-group (video: not a regular expression: "),
        (("--by-group", "town"), 3, "there are 1 groups for 2 splits (train, val)."),
        (("--val", 0.6, "--test", 0.4), 2, "nothing is left to train on"),
        (("--by-group", "video0(_9)?"), 3, "40 of 40 names don't match"),
    ):
        found = run("data", "split", project, *words)
        assert found[:2] == (code, "") and text in found[2], text
    (folder / "video0_000.png").rename(folder / " odd .png")
    (project.parent / "data/masks/town/video0_000.png").rename(project.parent / "data/masks/town/ odd .png")
    assert run("data", "split", project)[0] == 0  # spaces within a path are no problem
    (folder / "video1_000.png").write_bytes(b"")
    code, out, err = run("data", "split", project, "--force")
    assert (code, out) == (3, "") and "video1_000.png can't be read" in err


def test_a_validation_set_of_its_own_is_left_alone_but_lists_are_made_anew(run, project):
    out = run("data", "split", project)[1]
    use_printed(project, out)
    assert run("data", "split", project, "--val", 0.5, "--force")[0] == 0
    lists = [names_of(project.parent / f"{split}.txt") for split in ("train", "val")]
    assert [len(found) for found in lists] == [20, 20] and len({*lists[0], *lists[1]}) == 40
    write_set(project.parent / "other", [2])
    save_config(project, {"train": "data", "val": "other"})
    code, _, err = run("data", "split", project, "--force")
    assert code == 2 and "dataset.val has images of its own; remove it to divide the images of dataset.train." in err


def test_each_source_is_divided_by_itself(run, tmp_path):
    write_set(tmp_path / "a", [1] * 10)
    write_set(tmp_path / "b", [1] * 20, suffix="_gt")
    sources = [{"name": "city", "root": "a"}, {"name": "x/y", "root": "b", "mask_suffix": "_gt"}]
    cfg = save_config(tmp_path / "cfg.yaml", {"train": {"images": "images", "masks": "masks"}, "sources": sources})
    code, out, _ = run("data", "split", cfg)
    assert code == 0 and "In the entry of dataset.sources named city, write:" in out
    sizes = {name: len(names_of(tmp_path / name)) for name in ("city-val.txt", "x%2Fy-val.txt", "x%2Fy-train.txt")}
    assert sizes == {"city-val.txt": 2, "x%2Fy-val.txt": 4, "x%2Fy-train.txt": 16}
    sections = re.findall(r"write:\n\n(.*?)\n\n", out, re.DOTALL)
    for source, text in zip(sources, sections, strict=True):
        source |= yaml.safe_load(text)
    save_config(cfg, {"sources": sources})
    assert len(split_samples(load_config(cfg).dataset, "val")) == 6 and run("data", "check", cfg)[0] == 0


def test_readers_without_lists_are_refused(run, project):
    document = yaml.safe_load(project.read_text())
    document["dataset"] = {"type": "coco", "train": {"images": "images", "annotations": "a.json"}}
    project.write_text(yaml.safe_dump(document))
    code, _, err = run("data", "split", project)
    assert code == 2 and "dataset.type: 'coco' has no lists of images; `data split` can't divide it." in err


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 4), min_size=3, max_size=9), st.sampled_from([0.1, 0.2, 0.5]), st.integers(0, 99))
def test_groups_are_never_cut_and_every_image_is_in_one_list(tmp_path_factory, videos, val, seed):
    root = tmp_path_factory.mktemp("set")
    write_set(root, videos)
    config = load_config(
        save_config(root / "cfg.yaml", {"train": {"images": "images", "masks": "masks"}}), required=("train",)
    )
    shares = {"train": 1 - val, "val": val}
    (division,) = divide(config, shares, by_group=r"video\d", seed=seed)
    names = [name for found in division.names.values() for name in found]
    assert len(names) == len(set(names)) == sum(videos)
    groups = {split: {name.partition("_")[0] for name in found} for split, found in division.names.items()}
    assert not groups["train"] & groups["val"] and all(groups.values())
    assert division.groups == {split: len(found) for split, found in groups.items()}
    assert divide(config, shares, by_group=r"video\d", seed=seed) == [division]
    share = len(division.names["val"]) / len(names)
    assert abs(share - val) <= max(videos) / len(names)
