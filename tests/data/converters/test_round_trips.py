"""Masks written in a format and converted back are the same masks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from support.annotations import GROUPS, NAMES, as_names, read_output, write_coco, write_labelme

COLORS = {name: [40 * value, 255 - 30 * value, 7 * value] for value, name in NAMES.items()}
PALETTE = np.zeros((256, 3), np.uint8)
PALETTE[: len(COLORS)] = list(COLORS.values())


def check(masks, out, least=1.0):
    """The output has all masks, equal at a share of the pixels, and an image of the same size with each."""
    found, images, classes = read_output(out)
    assert set(found) == set(masks)
    for name, mask in masks.items():
        assert (found[name] == as_names(mask)).mean() >= least, name
        assert images[name].shape == (*mask.shape, 3)
    return classes


@pytest.mark.parametrize("polygons", [False, True], ids=["run lengths", "polygons"])
def test_coco(run, tmp_path, masks, write_images, polygons):
    photos = write_images(masks)
    named = {f"{name}.png": mask for name, mask in masks.items()}
    write_coco(tmp_path / "instances.json", named, NAMES, polygons=polygons, groups=GROUPS)
    code, out, err = run(
        "data",
        "convert",
        "coco",
        tmp_path / "instances.json",
        tmp_path / "out",
        "--images",
        photos,
        "--unlabeled",
        "ignore",
    )
    assert (code, err) == (0, "") and "val: 1" in out
    classes = check(masks, tmp_path / "out", 0.995 if polygons else 1.0)
    assert classes["tree"] == {
        "sky": None,
        "structure": ["building", "pole", "sign"],
        "ground": ["road", "pavement"],
        "tree": None,
    }


def test_labelme(run, tmp_path, masks, write_images):
    write_images(masks)
    for name, mask in masks.items():
        write_labelme(tmp_path / "json" / f"{name}.json", f"..\\photos\\{name}.png", mask, NAMES)
    code, out, err = run(
        "data",
        "convert",
        "labelme",
        tmp_path / "json",
        tmp_path / "out",
        "--images",
        tmp_path / "photos",
        "--unlabeled",
        "ignore",
    )
    assert (code, err) == (0, ""), out
    assert "tree" not in check(masks, tmp_path / "out", 0.995)


@pytest.mark.parametrize("listed", ["class_names.txt", "labelmap.txt"])
def test_voc(run, tmp_path, masks, write_images, listed):
    write_images(masks, "VOC/JPEGImages", ".jpg")
    root = tmp_path / "VOC"
    (root / "SegmentationClass").mkdir()
    if listed == "class_names.txt":
        (root / listed).write_text("\n".join(["__ignore__", *NAMES.values()]))
    else:
        lines = [f"{name}:{','.join(map(str, color))}::" for name, color in COLORS.items()]
        (root / listed).write_text("\n".join(["# label:color_rgb:parts:actions", *lines]))
    for name, mask in masks.items():
        painted = PALETTE.copy()
        painted[255] = 224, 224, 192
        image = Image.fromarray(mask)
        image.putpalette(painted.tobytes())
        image = image if listed == "class_names.txt" else image.convert("RGB")
        image.save(root / "SegmentationClass" / f"{name}.png")
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, names in (("train", ["000", "001", "002", "004"]), ("val", ["003", "005"]), ("trainval", masks)):
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    code, out, err = run("data", "convert", "voc", tmp_path, tmp_path / "out")
    assert (code, err) == (0, "") and "train: 4, val: 2" in out
    check(masks, tmp_path / "out")


def test_colors(run, tmp_path, masks, write_images):
    photos = write_images(masks, "photos/val") and write_images({"100": masks["000"]}, "photos/train").parent
    for name, split in [*((name, "val") for name in masks), ("100", "train")]:
        path = tmp_path / "painted" / split / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PALETTE[masks.get(name, masks["000"])]).save(path)
    split = {"images": "i", "masks": "m"}
    config = {"dataset": {"train": split, "val": split}, "classes": {"labels": NAMES, "colors": COLORS}}
    (tmp_path / "cfg.yaml").write_text(yaml.safe_dump(config))
    words = ("data", "convert", "colors", tmp_path / "painted", tmp_path / "out", "--config", tmp_path / "cfg.yaml")
    code, out, err = run(*words, "--ignore", "0,0,0", "--images", photos)
    assert (code, err) == (0, "") and "train: 1, val: 6" in out
    check(masks | {"100": masks["000"]}, tmp_path / "out")


def test_supervisely(run, tmp_path, masks, write_images):
    """Bitmaps are exact; polygons with their border, as Supervisely draws them, are tested elsewhere."""
    import base64
    import io
    import zlib

    for name, mask in masks.items():
        split = "val" if name == "003" else "train"
        write_images({f"{name}.jpg": mask}, f"project/{split}/img", ".png")
        objects = []
        for value, title in NAMES.items():
            ys, xs = np.nonzero(mask == value)
            if not len(ys):
                continue
            crop = (mask == value)[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
            buffer = io.BytesIO()
            Image.fromarray((crop * 255).astype(np.uint8)).save(buffer, format="PNG")
            data = base64.b64encode(zlib.compress(buffer.getvalue())).decode()
            bitmap = {"origin": [int(xs.min()), int(ys.min())], "data": data}
            objects.append({"classTitle": title, "geometryType": "bitmap", "bitmap": bitmap})
        document = {"size": {"height": 40, "width": 56}, "objects": objects, "tags": []}
        path = tmp_path / "project" / split / "ann" / f"{name}.jpg.png.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(document))
    meta = {"classes": [{"title": name, "shape": "bitmap", "color": "#0A0B0C"} for name in NAMES.values()]}
    (tmp_path / "project" / "meta.json").write_text(json.dumps(meta))
    code, out, err = run(
        "data", "convert", "supervisely", tmp_path / "project", tmp_path / "out", "--unlabeled", "ignore"
    )
    assert (code, err) == (0, ""), out
    found = check({f"{name}.jpg": mask for name, mask in masks.items()}, tmp_path / "out")
    assert found["colors"]["sky"] == [10, 11, 12]


def test_the_written_config_checks_and_trains(run, tmp_path, masks, write_images):
    from support.tiny import TINY

    photos = write_images(masks)
    named = {f"{name}.png": mask for name, mask in masks.items()}
    write_coco(tmp_path / "instances.json", named, NAMES, polygons=False, groups=GROUPS)
    out = tmp_path / "out"
    assert run("data", "convert", "coco", tmp_path / "instances.json", out, "--images", photos)[0] == 0
    cfg = Path(out, "cfg.yaml")
    assert run("data", "check", cfg)[0] == 0
    small = [*TINY, "training={device: cpu, epochs: 1, batch_size: 4, workers: 0, precision: fp32}"]
    code, printed, err = run("train", cfg, *(word for value in small for word in ("--set", value)))
    assert code == 0, (printed, err)
    assert (out / "runs" / "coco" / "best").exists()
