from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from seghiero_core.config.loading import load_config
from seghiero_core.data.audit import audit
from seghiero_core.data.samples import split_samples
from seghiero_core.errors import DataError

# pycocotools 2.0.11 with NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def box(x, y, width, height, category, **facts):
    polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
    return {"id": 1, "image_id": 1, "category_id": category, "segmentation": [polygon], "area": 1, **facts}


DOCUMENT = {
    "images": [
        {"id": 1, "file_name": "b.png", "height": 20, "width": 30},
        {"id": 2, "file_name": "sub/a.png", "height": 20, "width": 30},
    ],
    "categories": [{"id": 3, "name": "road"}, {"id": 7, "name": "car"}, {"id": 9, "name": "bus"}],
    "annotations": [box(0, 0, 30, 20, 3), box(5, 5, 10, 5, 7), box(20, 5, 5, 5, 9), box(0, 0, 2, 2, 7, image_id=2)],
}


@pytest.fixture
def coco(tmp_path):
    """`coco(document, **keys)` writes the set and its config, and returns the config."""

    def write(document=DOCUMENT, **keys):
        for entry in DOCUMENT["images"]:
            path = tmp_path / "images" / entry["file_name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((20, 30, 3), entry["id"], dtype=np.uint8)).save(path)
        (tmp_path / "instances.json").write_text(json.dumps(document))
        split = {"annotations": "instances.json"}
        dataset = {"type": "coco", "images": "images", "train": split, "val": split, **keys}
        labels = {"labels": ["zero", "one", "two", "road", "four", "five", "six", "car", "eight", "bus"]}
        (tmp_path / "cfg.yaml").write_text(json.dumps({"dataset": dataset, "classes": labels}))
        return load_config(tmp_path / "cfg.yaml")

    return write


def test_masks_hold_category_ids(coco):
    config = coco(categories=["road", 7])
    samples = split_samples(config.dataset, "train")
    assert [sample.name for sample in samples] == ["b.png", "sub/a.png"]
    image, mask, _ = samples[0].reader.read(0)
    expected = np.full((20, 30), 3)
    expected[5:10, 5:15] = 7
    expected[5:10, 20:25] = 255  # a bus
    assert (image == 1).all() and np.array_equal(mask, expected)
    expected = np.full((20, 30), 255)
    expected[:2, :2] = 7
    assert np.array_equal(samples[1].reader.read(1)[1], expected)
    found = audit(samples, config.hierarchy)
    assert (found.sizes, found.values[7], found.ignored) == ({(20, 30): 2}, 54, 25 + 596)
    assert audit(samples, config.hierarchy, check="fast").decoded == 2


def test_background(coco):
    samples = split_samples(coco(background=1).dataset, "val")
    assert np.unique(samples[1].reader.read(1)[1]).tolist() == [1, 7]


FIRST = DOCUMENT["images"][0]


def changed(**sections):
    return {**DOCUMENT, **sections}


@pytest.mark.parametrize(
    ("document", "keys", "message"),
    [
        (
            changed(images=[{**DOCUMENT["images"][0], "file_name": "c.png"}], annotations=[]),
            {},
            "1 of 1 images .* c.png",
        ),
        (changed(images=[]), {}, "is of image 1, which is not in `images`"),
        (changed(images=[], annotations=[]), {}, "has no images"),
        (changed(images=[FIRST] * 2, annotations=[]), {}, "two images have the same id or file_name"),
        (changed(annotations={}), {}, "has no list `annotations`"),
        (changed(categories=[{"id": 3}]), {}, r"categories\.0: expected a string as `name`"),
        ([], {}, "has no list `images`"),
        (DOCUMENT, {"categories": ["raod"]}, "no category 'raod'. Did you mean 'road'"),
        (DOCUMENT, {"ignore_value": 7}, "7 is the id of a category"),
        (DOCUMENT, {"val": {"annotations": "no.json"}}, r"dataset\.val\.annotations: .*no\.json: No such file"),
    ],
)
def test_faults(coco, document, keys, message):
    dataset = coco(document, **keys).dataset
    with pytest.raises(DataError, match=message):
        split_samples(dataset, "val")


def test_faults_of_one_image(coco):
    damaged = changed(annotations=[box(0, 0, 30, 20, 3), {**box(5, 5, 1, 1, 3), "segmentation": [[1, 2, 3]]}])
    config = coco(damaged)
    (first, _) = split_samples(config.dataset, "val")
    first.read(config.hierarchy)  # a polygon of less than three points has no area
    damaged["annotations"][1]["segmentation"] = [[1, 2, 3, 4, 5, "x"]]
    config = coco(damaged)
    with pytest.raises(DataError, match=r"instances\.json: b\.png: annotation 1: expected coordinates, found 'x'\."):
        audit(split_samples(config.dataset, "val"), config.hierarchy)
    config = coco(changed(images=[{**entry, "height": 19} for entry in DOCUMENT["images"]]))
    with pytest.raises(DataError, match="2 masks differ in size from their images"):
        audit(split_samples(config.dataset, "val"), config.hierarchy, check="fast")
