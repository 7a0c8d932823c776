"""Objects in JSON files: what becomes of crowds, overlaps, holes, borders, and damaged or unknown entries."""

from __future__ import annotations

import base64
import io
import json
import zlib

import numpy as np
import pytest
from PIL import Image

from support.annotations import read_output, runs_of

SQUARE = [[2, 2, 12, 2, 12, 12, 2, 12]]


@pytest.fixture
def coco(tmp_path, run):
    """A function that writes `in/all.json` with these annotations of a 20x30 px image, and converts it."""

    def convert(annotations, *words, categories=({"id": 5, "name": "car"}, {"id": 9, "name": "dog"}), **changes):
        document = {
            "images": [{"id": i, "file_name": f"{name}.png", "height": 20, "width": 30} for i, name in enumerate("ab")],
            "annotations": [
                {"id": 100 + i, "image_id": 0, "category_id": 5} | each for i, each in enumerate(annotations)
            ],
            "categories": categories and list(categories),
        } | changes
        (tmp_path / "in").mkdir(exist_ok=True)
        for name in "ab":
            Image.new("RGB", (30, 20)).save(tmp_path / "in" / f"{name}.png")
        (tmp_path / "in" / "all.json").write_text(json.dumps(document))
        return run("data", "convert", "coco", tmp_path / "in", tmp_path / "out", *words)

    return convert


def test_crowds_boxes_and_overlaps(coco, tmp_path):
    crowd = np.zeros((20, 30), bool)
    crowd[:, :5] = True
    code, out, err = coco(
        [
            {"segmentation": [[4, 4, 8, 4, 8, 8, 4, 8]], "category_id": 9},  # small, first in the file: stays on top
            {"segmentation": SQUARE},
            {"segmentation": runs_of(crowd), "iscrowd": 1},
            {"segmentation": [], "bbox": [20, 0, 4, 6]},
            {"segmentation": [[1, 1, 2, 2]]},
        ]
    )
    assert code == 0, err
    for text in ("2 objects\n", "1 crowd regions", "16 px in objects of", "1 objects with a box", "1 points, lines"):
        assert text in out, text
    found = read_output(tmp_path / "out")[0]["a"]
    expected = np.full((20, 30), "background", dtype=object)
    expected[:, :5] = ""
    expected[:6, 20:24] = ""
    expected[2:12, 2:12] = "car"
    expected[4:8, 4:8] = "dog"
    assert (found == expected).all()


def test_supercategories(coco, tmp_path):
    """A category may be a group of others; a group of all is left out, and so is Roboflow's unused category."""
    categories = [
        {"id": 0, "name": "project", "supercategory": "none"},
        {"id": 5, "name": "vehicle", "supercategory": "project"},
        {"id": 6, "name": "car: 'fast'", "supercategory": "vehicle"},
        {"id": 7, "name": "yes", "supercategory": "vehicle"},
        {"id": 9, "name": "7", "supercategory": "project"},
        {"id": 10, "name": "🐕 $x #1", "supercategory": "animal"},
    ]
    annotations = [{"segmentation": SQUARE, "category_id": number} for number in (5, 6, 9)]
    code, _, err = coco(annotations, "--unlabeled", "ignore", categories=categories)
    assert code == 0, err
    classes = read_output(tmp_path / "out")[2]
    assert list(classes["labels"].values()) == ["vehicle", "car: 'fast'", "yes", "7", "🐕 $x #1"]
    assert classes["tree"] == {"project": {"vehicle": ["car: 'fast'", "yes"], "7": None}, "animal": ["🐕 $x #1"]}


def test_the_classes_of_a_config(coco, tmp_path, run):
    split = "{images: i, masks: m}"
    text = f"dataset: {{train: {split}, val: {split}}}\nclasses: {{labels: {{3: car, 4: rest}}, ignore: 9}}\n"
    (tmp_path / "cfg.yaml").write_text(text)
    annotations = [{"segmentation": SQUARE}, {"segmentation": [[20, 0, 22, 0, 22, 3, 20, 3]], "category_id": 9}]
    words = ("--config", tmp_path / "cfg.yaml", "--unlabeled", "rest")
    code, out, err = coco(annotations, *words)
    assert code == 0 and "1 objects whose class has no label, ignored" in out and "without a label: dog" in out, err
    (mask,) = (tmp_path / "out").glob("*/masks/a.png")
    values, counts = np.unique(np.asarray(Image.open(mask)), return_counts=True)
    assert dict(zip(values.tolist(), counts.tolist(), strict=True)) == {3: 100, 4: 600 - 100 - 6, 9: 6}


@pytest.mark.parametrize(
    ("annotations", "changes", "words"),
    [
        ([{"category_id": 77, "segmentation": SQUARE}], {}, "annotations 0: category_id 77 is not in 'categories'"),
        ([{"image_id": 8, "segmentation": SQUARE}], {}, "1 annotations are of image 8, which is not in 'images'"),
        ([{"segmentation": {"size": [20, 30], "counts": [7]}}], {}, "annotation 100: its run lengths cover 7 px"),
        ([{"segmentation": {"size": [30, 20], "counts": [600]}}], {}, "have the size [30, 20], the image [20, 30]"),
        ([{"segmentation": [[0, 0, 1e9, 0, 5, 5]]}], {}, "coordinates far outside the image"),
        ([{"segmentation": [[0, 0, "x", 0, 5, 5]]}], {}, "expected coordinates, found 'x'"),
        ([{"bbox": [1, 2, 3, 4]}], {}, "all.json has only boxes, no masks"),
        ([], {}, "all.json has no annotations"),
        (
            [{"segmentation": SQUARE}],
            {"categories": [{"id": 5, "name": " "}]},
            "expected the name of a class, found ' '",
        ),
        ([{"segmentation": SQUARE}], {"categories": [{"id": 5, "name": "\ud800"}]}, "expected the name of a class"),
        ([{"segmentation": SQUARE}], {"categories": None}, "expected a list at 'categories', found nothing"),
        (
            [{"segmentation": SQUARE}],
            {
                "categories": [
                    {"id": 5, "name": "a", "supercategory": "b"},
                    {"id": 6, "name": "b", "supercategory": "a"},
                ]
            },
            "the groups of classes form a circle: a in b in a",
        ),
        (
            [{"segmentation": SQUARE}],
            {
                "images": [
                    {"id": 0, "file_name": "a.png", "height": 20, "width": 31},
                    {"id": 1, "file_name": "b.png", "height": 20, "width": 30},
                ]
            },
            "20x31 px (HxW), the image 20x30",
        ),
        (
            [{"segmentation": SQUARE}],
            {"images": [{"id": 0, "file_name": "c.jpg", "height": 20, "width": 30}]},
            "images 0: found no image 'c.jpg' below",
        ),
        (
            [{"segmentation": SQUARE}],
            {"images": [{"id": 0, "file_name": "a.jpg", "height": 20, "width": 30}]},
            "in/a.png'?",
        ),
    ],
)
def test_damaged_files_are_named(coco, annotations, changes, words):
    code, out, err = coco(annotations, **changes)
    assert (code, out) == (3, "") and words in err and "all.json" in err and "Traceback" not in err


def test_a_cut_file(coco, tmp_path, run):
    coco([{"segmentation": SQUARE}])
    path = tmp_path / "in" / "all.json"
    path.write_text(path.read_text()[:-20])
    code, _, err = run("data", "convert", "coco", path, tmp_path / "other")
    assert code == 3 and "all.json is not valid JSON (line 1, column" in err and not (tmp_path / "other").exists()


def test_labelme_shapes(run, tmp_path):
    inner = io.BytesIO()
    Image.fromarray(np.array([[255, 0], [255, 255]], np.uint8)).save(inner, format="PNG")
    shapes = [
        {"label": "box", "shape_type": "rectangle", "points": [[12, 12], [2.4, 3.6]]},
        {"label": "disc", "shape_type": "circle", "points": [[20, 10], [20, 14]]},
        {
            "label": 7,
            "shape_type": "mask",
            "points": [[0, 0], [1, 1]],
            "mask": base64.b64encode(inner.getvalue()).decode(),
        },
        {"label": "box", "shape_type": "linestrip", "points": [[0, 0], [9, 9], [5, 5]]},
        {"label": "only points", "shape_type": "point", "points": [[0, 0]]},
        {"label": "__ignore__", "shape_type": "polygon", "points": [[28, 0], [30, 0], [30, 20], [28, 20]]},
    ]
    for name in "ab":
        Image.new("RGB", (30, 20)).save(tmp_path / f"{name}.jpg")
        document = {"shapes": shapes, "imagePath": f"{name}.jpg", "imageHeight": 20, "imageWidth": 30}
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    code, out, err = run("data", "convert", "labelme", tmp_path, tmp_path / "out")
    assert code == 0 and "4 points, lines" in out, err
    masks, _, classes = read_output(tmp_path / "out")
    assert list(classes["labels"].values()) == ["background", "7", "box", "disc"]
    y, x = np.mgrid[:20, :30] + 0.5  # centers of pixels
    expected = np.full((20, 30), "background", dtype=object)
    expected[(x > 2.4) & (x < 12) & (y > 3.6) & (y < 12)] = "box"
    expected[np.hypot(x - 20, y - 10) <= 4] = "disc"
    expected[0, 0] = expected[1, 0] = expected[1, 1] = "7"
    expected[:, 28:] = ""
    assert (masks["a"] == expected).all()


def test_supervisely_polygons_contain_their_border_and_holes_theirs(run, tmp_path):
    polygon = {"exterior": [[2, 2], [11, 2], [11, 11], [2, 11]], "interior": [[[5, 5], [7, 5], [7, 7], [5, 7]]]}
    objects = [
        {"classTitle": "a", "geometryType": "polygon", "points": polygon},
        {"classTitle": "b", "geometryType": "rectangle", "points": {"exterior": [[20, 0], [22, 1]], "interior": []}},
        {"classTitle": "b", "geometryType": "line", "points": {"exterior": [[20, 0], [22, 1]], "interior": []}},
    ]
    for name, tag in (("x", "train"), ("y", "val"), ("z", "other")):
        for folder in ("img", "ann"):
            (tmp_path / "in" / "ds" / folder).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20)).save(tmp_path / "in" / "ds" / "img" / f"{name}.png")
        document = {"size": {"height": 20, "width": 30}, "objects": objects, "tags": [{"name": tag}]}
        (tmp_path / "in" / "ds" / "ann" / f"{name}.png.json").write_text(json.dumps(document))
    meta = {"classes": [{"title": title, "color": "#010203"} for title in "ab"]}
    (tmp_path / "in" / "meta.json").write_text(json.dumps(meta))
    code, out, err = run("data", "convert", "supervisely", tmp_path / "in", tmp_path / "out")
    assert code == 0 and "train: 2, val: 1" in out and "3 holes" in out and "3 points, lines" in out, err
    expected = np.full((20, 30), "background", dtype=object)
    expected[2:12, 2:12] = "a"
    expected[5:8, 5:8] = "background"
    expected[0:2, 20:23] = "b"
    assert (read_output(tmp_path / "out")[0]["ds/y"] == expected).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"classTitle": "c"}, "objects 0: the class 'c' is not in meta.json"),
        ({"bitmap": {"origin": [29, 0], "data": None}}, "expected a text at 'data'"),
        ({"bitmap": {"origin": [0, 0], "data": "!"}}, "objects 0: the bitmap is not base64"),
        ({"bitmap": {"origin": [0, 0], "data": "AAAA"}}, "objects 0: the bitmap can't be unpacked"),
        ({"bitmap": {"origin": [0, 0], "data": base64.b64encode(zlib.compress(b"x")).decode()}}, "can't be read"),
        ({"geometryType": "polygon", "points": {"exterior": [[1, 2], [3]]}}, "objects 0: expected points [x, y]"),
    ],
)
def test_damaged_supervisely_files_are_named(run, tmp_path, change, words):
    entry = {"classTitle": "a", "geometryType": "bitmap", **change}
    for name in "xy":
        for folder in ("img", "ann"):
            (tmp_path / "in" / "ds" / folder).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20)).save(tmp_path / "in" / "ds" / "img" / f"{name}.png")
        document = {"size": {"height": 20, "width": 30}, "objects": [entry], "tags": []}
        (tmp_path / "in" / "ds" / "ann" / f"{name}.png.json").write_text(json.dumps(document))
    (tmp_path / "in" / "meta.json").write_text(json.dumps({"classes": [{"title": "a"}, {"title": "b"}]}))
    code, out, err = run("data", "convert", "supervisely", tmp_path / "in", tmp_path / "out")
    assert (code, out) == (3, "") and words in err and "x.png.json" in err and "Traceback" not in err
