"""`seghiero data check`: one report of everything that is wrong, or probably not meant."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from seghiero_core.config.loading import load_config
from seghiero_core.data import audit as audit_module
from seghiero_core.data.facts import find_facts
from seghiero_core.errors import DataError
from seghiero_core.training.prepare import prepare
from support.exif import save_turned
from support.processes import ROOT
from support.tiny import TINY

SIZE = (32, 32)
LABELS = ["sky", "grass", "disc", "ring"]


def picture(rng, size=SIZE):
    return rng.integers(0, 256, (*size, 3), dtype=np.uint8)


def add(folder: Path, name: str, image: np.ndarray, mask: np.ndarray, extension: str = "png") -> tuple[Path, Path]:
    paths = folder / "images" / f"{name}.{extension}", folder / "masks" / f"{name}.png"
    for path, array in zip(paths, (image, mask), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)
    return paths


def spoil(root: Path) -> list[dict]:
    """Write sources of which each but the first has one fault; the first has one of each fault of single files."""
    rng = np.random.default_rng(0)

    def source(name: str, values=(0, 1, 2, 3), count=3, size=SIZE, split="train", dark=False, **keys) -> dict:
        for i in range(count):
            mask = rng.choice(np.array(values, dtype=np.uint8), size)
            add(root / name / split, f"{i}", picture(rng, size) // (99 if dark else 1), mask)
        return {"name": name, "root": name, "val": None, **keys}

    source("files", (0, 1, 2), 60)
    source("files", split="val")
    images, masks = ([root / "files/train" / kind / f"{i}.png" for i in range(60)] for kind in ("images", "masks"))
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(masks[1], format="JPEG")
    Image.fromarray(np.full((*SIZE, 3), (128, 64, 128), np.uint8)).save(masks[2])
    images[3].write_bytes(images[3].read_bytes()[:900])
    Image.fromarray(np.zeros((32, 31), np.uint8)).save(masks[4])
    Image.fromarray(np.zeros(SIZE, np.int32)).save(images[5], format="TIFF")
    save_turned(picture(rng), images[6], 3)
    Image.fromarray(np.full(SIZE, 4095, np.uint16)).save(images[7])
    add(root / "files/train", "8", picture(rng, (32, 40)), np.zeros((32, 40), np.uint8))
    Image.fromarray(np.full(SIZE, 77, np.uint8)).save(masks[9])
    save_turned(picture(rng, (32, 40)), images[10], 6)
    Image.fromarray(np.zeros((40, 32), np.uint8)).save(masks[10])
    Image.fromarray(np.where(np.indices(SIZE).sum(axis=0) == 0, 3, 0).astype(np.uint8)).save(masks[11])  # rare
    shutil.copy(images[12], root / "files/val/images/0.png")
    (root / "files/val/images/1.png").unlink()
    (root / "files/val/images/1.png").symlink_to(images[13])

    (root / "maskless/train/images").mkdir(parents=True)
    swapped = source("swapped", (0, 1))
    folders = [root / "swapped/train" / kind for kind in ("images", "masks", "x")]
    for old, new in ((0, 2), (1, 0), (2, 1)):
        folders[old].rename(folders[new])
    lossy = source("lossy")
    for path in (root / "lossy/train/masks").iterdir():
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
    maskless = source("maskless", (0, 1, 2))
    (root / "maskless/train/masks/1.png").unlink()
    Image.fromarray(np.full(SIZE, 77, np.uint8)).save(root / "maskless/train/masks/2.png")
    (root / "empty/train/images").mkdir(parents=True)
    return [
        {"name": "files", "root": "files"},
        source("binary", (0, 255)),
        source("white", (0, 255), labels={0: "sky", 1: "disc"}, ignore=7),
        source("shifted", (0, 7), labels={0: "sky", 1: "grass"}, ignore=7),
        source("from_one", (1, 2, 3), labels=["sky", "grass", "disc"]),
        source("ignored", (255,)),
        source("night", (0, 1, 2), dark=True),
        source("small", (0, 1, 2), size=(16, 16)),
        swapped,
        lossy,
        maskless,
        {"name": "gone", "root": "gone", "val": None},
        {"name": "empty", "root": "empty", "val": None},
    ]


ERRORS = {
    "files": [
        "jpeg_mask",
        "mask_channels",
        "unreadable",
        "mask_size",
        "image_pixels",
        "unknown_values",
        "exif_quarter_turn",
    ],
    "white": ["unknown_values"],
    "from_one": ["unknown_values"],
    "swapped": ["swapped"],
    "lossy": ["jpeg_mask"],
    "maskless": ["no_mask", "unknown_values"],
    "gone": ["no_folder"],
    "empty": ["no_files"],
}
WARNINGS = {
    "files": ["exif", "dark_16_bit", "odd_size"],
    "binary": ["binary_masks"],
    "shifted": ["ignored_label"],
    "ignored": ["all_ignored"],
    "night": ["image_mean"],
    "small": ["padding"],
    "all": ["rare_class"],
}
FOUND = {
    "train": {"error": ERRORS, "warning": WARNINGS},
    "val": {"error": {}, "warning": {"all": ["duplicate_images", "shared_images"]}},
}


@pytest.fixture
def spoiled(small) -> Path:
    document = yaml.safe_load(small.read_text())
    document["transform"] = {"size": list(SIZE), "scale": [1, 1]}
    document["dataset"] = {"train": "train", "val": "val", "sources": spoil(small.parent / "spoiled")}
    document["dataset"]["root"] = "spoiled"
    small.write_text(yaml.safe_dump(document, sort_keys=False))
    return small


def kinds(findings: list[dict], level: str) -> dict[str, list[str]]:
    """The kinds of the findings of each source, sorted."""
    found: dict[str, list[str]] = {}
    for finding in findings:
        if finding["level"] == level:
            source = finding["text"].partition(":")[0]
            found.setdefault(source if source in {**ERRORS, **WARNINGS} else "all", []).append(finding["kind"])
    return {source: sorted(names) for source, names in found.items()}


def test_a_set_with_one_of_each_fault(run, spoiled, tmp_path):
    code, out, err = run("data", "check", spoiled, "--json", "--sheet", tmp_path / "sheet.png")
    report = json.loads(out)
    assert code == 3 and err.endswith("error: the data set has 15 errors; see above.\n")
    for split, levels in FOUND.items():
        findings = report[split]["findings"]
        for level, expected in levels.items():
            assert kinds(findings, level) == {source: sorted(names) for source, names in expected.items()}
        assert all(finding["fix"] for finding in findings)
    files = {finding["kind"]: finding["files"] for finding in report["train"]["findings"] if finding["files"]}
    root = tmp_path / "spoiled/files"
    numbers = {"jpeg_mask": 1, "mask_channels": 2, "mask_size": 4, "exif_quarter_turn": 10}
    numbers = {kind: f"masks/{i}.png" for kind, i in numbers.items()}
    numbers |= {
        kind: f"images/{i}.png"
        for kind, i in {"unreadable": 3, "image_pixels": 5, "exif": 6, "dark_16_bit": 7, "odd_size": 8}.items()
    }
    assert {kind: files[kind] for kind in numbers} == {kind: [str(root / "train" / p)] for kind, p in numbers.items()}
    assert files["rare_class"] == [str(root / "train/images/11.png")]
    twice = {finding["kind"]: finding["files"] for finding in report["val"]["findings"]}
    assert twice == {
        "duplicate_images": [str(root / "val/images/0.png"), str(root / "train/images/12.png")],
        "shared_images": [str(root / "val/images/1.png")],
    }
    texts = {f"{each['text']} {each['fix']}" for each in report["train"]["findings"]}
    for words in (
        f"run `seghiero data convert colors {root}/train/masks OUT --config CFG`",
        "where 255 means disc, write labels: {0: sky, 255: disc}.",
        "The values start at 1, the labels at 0: write labels: {1: sky, 2: grass, 3: disc}.",
        "If 255 means a class, write dataset.sources.1.labels: {0: sky, 255: NAME} and ignore: 254.",
        "1 of 60 images are not 32x32 px (HxW) like the others: 8.png (32x40) in ",
        "less than 0.01 % of the labeled pixels have the label ring (1 px).",
    ):
        assert any(words in text for text in texts), words
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.format == "PNG" and sheet.width > 1000
        assert ((np.asarray(sheet) == (255, 0, 255)).all(axis=2)).sum() > 32 * 32  # values that aren't labels


def test_the_report_as_text_is_that_of_json(run, spoiled):
    report = json.loads(run("data", "check", spoiled, "--json")[1])
    code, out, _ = run("data", "check", spoiled)
    assert code == 3 and re.findall(r"^(FAIL|ok  ) (\w+): ", out, re.MULTILINE) == [("FAIL", "train"), ("ok  ", "val")]
    findings = [finding for split in report.values() for finding in split["findings"]]
    lines = [f"     {each['level']}: {each['text']}\n       -> {each['fix']}\n" for each in findings]
    assert len(lines) == 26 and all(out.count(line) == 1 for line in lines)


def test_clean_camvid_gives_no_warning_and_its_statistics_equal_a_count(run, tmp_path, camvid):
    text = re.search(r"```yaml\n(dataset:.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    document = yaml.safe_load(text)
    document["dataset"]["root"] = str(camvid)
    (tmp_path / "cfg.yaml").write_text(yaml.safe_dump(document))
    code, out, err = run("data", "check", tmp_path / "cfg.yaml", "--json", "--sheet", tmp_path / "sheet.png")
    report = json.loads(out)
    assert (code, err) == (0, f"nothing to draw: {tmp_path / 'sheet.png'} was not written.\n")
    assert [split["findings"] for split in report.values()] == [[], []] and not (tmp_path / "sheet.png").exists()
    stats = json.loads(run("data", "stats", tmp_path / "cfg.yaml", "--json")[1])["splits"]
    for split in ("train", "val"):
        counts = np.zeros(256, np.int64)
        for path in (camvid / split / "masks").iterdir():
            counts += np.bincount(np.asarray(Image.open(path)).ravel(), minlength=256)
        assert [entry["pixels"] for entry in stats[split]["labels"]] == counts[:11].tolist()
        assert report[split]["ignored"] == stats[split]["ignored"] == counts[255] / counts.sum()
        assert counts[11:255].sum() == 0


def age(folder: Path) -> None:
    """Make files look as if they had been written a while ago."""
    for path in folder.rglob("*.png"):
        os.utime(path, (1e9, 1e9))


def test_what_was_checked_is_not_decoded_again_by_check_or_train(run, small, monkeypatch):
    decoded = []

    def count(sample, *, decode):
        decoded.append(sample.image)
        return find_facts(sample, decode=decode)

    monkeypatch.setattr(audit_module, "find_facts", count)
    age(small.parent)
    first = run("data", "check", small, "--json")
    assert len(decoded) == 6
    assert run("data", "check", small, "--json") == first
    prepare(load_config(small, TINY))
    assert len(decoded) == 6
    assert run("data", "check", small, "--json", "--no-cache") == first and len(decoded) == 12
    monkeypatch.setenv("SEGHIERO_CACHE", "off")
    assert run("data", "check", small, "--json") == first and len(decoded) == 18


def test_train_reports_the_errors_of_all_splits(small):
    for split in ("train", "val"):
        (small.parent / split / "masks" / "0.png").write_bytes(b"")
    with pytest.raises(DataError) as info:
        prepare(load_config(small, TINY))
    assert [line.partition(": ")[0] for line in str(info.value).splitlines()] == ["train", "val"]
    for split in ("train", "val"):
        shutil.rmtree(small.parent / split / "masks")
    with pytest.raises(DataError) as info:
        prepare(load_config(small, TINY))
    assert [line.partition(": ")[0] for line in str(info.value).splitlines()] == ["train", "val"]


def test_a_cache_that_cant_be_used_is_a_warning(run, small, tmp_path, monkeypatch):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/facts.sqlite").write_bytes(b"no database" * 100)
    monkeypatch.setenv("SEGHIERO_CACHE", str(tmp_path / "cache"))
    code, out, _ = run("data", "check", small)
    assert code == 0 and "warning: the cache of earlier checks can't be used: " in out
    assert "-> Repair or delete it, or set SEGHIERO_CACHE to another folder, or to `off`." in out


def test_a_sheet_overwrites_nothing(run, small, tmp_path):
    (tmp_path / "sheet.png").write_text("mine")
    for name, words in (("sheet.png", "the file exists"), ("sheet.jpg", "must end in .png")):
        code, out, err = run("data", "check", small, "--sheet", tmp_path / name)
        assert (code, out) == (2, "") and words in err
    assert (tmp_path / "sheet.png").read_text() == "mine"
