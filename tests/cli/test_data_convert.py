"""`seghiero data convert`, as a user calls it; each format is tested with the converters."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from seghiero_core.config.loading import load_config
from support.annotations import GROUPS, NAMES, write_coco
from support.exif import save_turned

COLORS = {"sky": [70, 130, 180], "pole": [153, 153, 153], "road": [128, 64, 128]}


@pytest.fixture
def painted(tmp_path):
    """A function that writes `cfg.yaml` with `labels` and COLORS, and color masks of label values to `painted`."""

    def paint(labels: dict[int, str], masks: dict[str, np.ndarray], mode: str = "RGB") -> Path:
        classes = {"labels": labels, "colors": {name: COLORS[name] for name in labels.values()}, "ignore": 255}
        split = {"images": "images", "masks": "masks"}
        config = {"dataset": {"train": split, "val": split}, "classes": classes}
        (tmp_path / "cfg.yaml").write_text(yaml.safe_dump(config))
        table = {value: COLORS[name] for value, name in labels.items()} | {255: [0, 0, 0]}
        for name, mask in masks.items():
            path = tmp_path / "painted" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            rgb = np.array([table[value] for value in mask.ravel().tolist()], np.uint8).reshape(*mask.shape, 3)
            picture = Image.fromarray(rgb)
            (picture.quantize(8) if mode == "P" else picture.convert(mode)).save(path)
        return tmp_path / "cfg.yaml"

    return paint


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
@pytest.mark.parametrize("values", [(0, 7, 200), (0, 7, 300)], ids=["8 bit", "16 bit"])
def test_converted_masks_hold_the_label_values(run, painted, tmp_path, mode, values):
    rng = np.random.default_rng(0)
    masks = {f"town/{i}.png": rng.choice([*values, 255], (9, 11 + i)) for i in range(3)}
    cfg = painted(dict(zip(values, COLORS, strict=True)), masks, mode)
    out = tmp_path / "masks"
    code, printed, err = run(
        "data", "convert", "colors", tmp_path / "painted", out, "--config", cfg, "--ignore", "0,0,0"
    )
    assert (code, err) == (0, "") and printed.startswith("3 masks -> ")
    for name, mask in masks.items():
        with Image.open(out / name) as image:
            assert np.array_equal(np.asarray(image), mask)
            if max(values) < 256:
                assert image.mode == "P" and image.getpalette()[3 * 7 : 3 * 7 + 3] == COLORS["pole"]
    assert sorted(path.name for path in out.rglob("*.png")) == ["0.png", "1.png", "2.png"]


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_converted_masks_are_upright(run, painted, tmp_path, orientation):
    mask = np.array([[0, 1, 0], [1, 1, 0]])
    cfg = painted({0: "sky", 1: "road"}, {"a.png": mask})
    path = tmp_path / "painted" / "a.png"
    save_turned(np.asarray(Image.open(path)), path, orientation)
    assert run("data", "convert", "colors", tmp_path / "painted", tmp_path / "masks", "--config", cfg)[0] == 0
    assert np.array_equal(np.asarray(Image.open(tmp_path / "masks" / "a.png")), mask)


def test_colors_of_no_class_are_listed_and_the_rest_is_converted(run, painted, tmp_path):
    cfg = painted({0: "sky", 1: "road"}, {"good.png": np.zeros((4, 5), int), "bad.png": np.full((4, 5), 255)})
    code, out, err = run("data", "convert", "colors", tmp_path / "painted", tmp_path / "masks", "--config", cfg)
    assert (code, out) == (3, "") and "1 of 2 masks were not converted" in err
    assert "bad.png has colors that belong to no class: 0,0,0 (20 px)" in err and "--ignore" in err
    assert [path.name for path in (tmp_path / "masks").glob("*.png")] == ["good.png"]


def test_colors_of_no_class_in_many_masks_are_one_line(run, painted, tmp_path):
    cfg = painted({0: "sky"}, {f"{i}.png": np.full((4, 5), 255) for i in range(6)})
    code, _, err = run("data", "convert", "colors", tmp_path / "painted", tmp_path / "masks", "--config", cfg)
    assert code == 3 and len(err.splitlines()) == 2
    assert "6 masks have colors that belong to no class: 0.png (0,0,0 (20 px)), 1.png" in err and "and 3 more in" in err


def test_what_convert_refuses(run, painted, tmp_path):
    cfg = painted({0: "sky", 1: "road"}, {"a.png": np.zeros((4, 5), int)})
    source = tmp_path / "painted"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    for arguments, words in (
        ((tmp_path / "nowhere", tmp_path / "o"), "does not exist"),
        ((source / "a.png", tmp_path / "o"), "is not a folder"),
        ((source, tmp_path / "full"), "is not an empty folder"),
        ((source, tmp_path / "full" / "x"), "is not an empty folder"),
        ((tmp_path / "full", tmp_path / "o"), "has no mask"),
        ((source, tmp_path / "o", "--ignore", "0,0"), "three whole numbers"),
        ((source, tmp_path / "o", "--ignore", "70,130,180"), "is used for two values, 0 and 255"),
    ):
        code, out, err = run("data", "convert", "colors", *arguments, "--config", cfg)
        assert (code, out) == (2, "") and words in err, words
    config = yaml.safe_load(cfg.read_text())
    del config["classes"]["colors"]
    cfg.write_text(yaml.safe_dump(config))
    code, _, err = run("data", "convert", "colors", source, tmp_path / "o", "--config", cfg)
    assert code == 2 and "classes.colors has no color of any label" in err
    Image.new("RGB", (3, 3)).save(source / "a.bmp")
    cfg = painted({0: "sky"}, {})
    code, _, err = run("data", "convert", "colors", source, tmp_path / "o", "--config", cfg)
    assert code == 3 and "would both get the mask a.png" in err and not (tmp_path / "o").exists()


def test_camvid_as_it_is_published(run, tmp_path):
    """CamVid's 32 classes are published as color masks only; the preset has those colors."""
    split = "{images: images, masks: masks}"
    (tmp_path / "cfg.yaml").write_text(f"dataset: {{train: {split}, val: {split}}}\nclasses: {{preset: camvid-32}}\n")
    classes = load_config(tmp_path / "cfg.yaml").classes
    (tmp_path / "painted").mkdir()
    row = np.array([[classes.colors[name] for name in classes.labels.values()]], np.uint8)
    Image.fromarray(row).save(tmp_path / "painted" / "a.png")
    assert (
        run("data", "convert", "colors", tmp_path / "painted", tmp_path / "masks", "--config", tmp_path / "cfg.yaml")[0]
        == 0
    )
    assert np.asarray(Image.open(tmp_path / "masks" / "a.png")).tolist() == [list(classes.labels)]


def test_the_old_form_names_the_new_one(run, tmp_path):
    code, out, err = run("data", "convert", tmp_path / "cfg.yaml", "painted", "masks")
    assert (code, out) == (2, "")
    assert f"seghiero data convert colors painted masks --config {tmp_path / 'cfg.yaml'}" in err


def test_options_of_other_formats_are_refused(run, tmp_path):
    (tmp_path / "in").mkdir()
    for words, text in (
        (("cocoa",), "unknown format 'cocoa'. Did you mean 'coco'?"),
        (("coco", "--ignore", "0,0,0"), "--ignore has no effect on the format coco; it is for camvid, voc, colors."),
        (("cityscapes", "--unlabeled", "sky"), "--unlabeled has no effect on the format cityscapes"),
        (("voc", "--unlabeled", "sky"), "--unlabeled has no effect on the format voc"),
        (("coco", "--source", "city"), "--source has no effect on the format coco"),
        (("colors", "--val", "0.5"), "--val and --copy need images"),
        (("colors", "--copy"), "--val and --copy need images"),
        (("colors",), "add --config CFG"),
    ):
        kind, *options = words
        code, out, err = run("data", "convert", kind, tmp_path / "in", tmp_path / "out", *options)
        assert (code, out) == (2, "") and text in err, (words, err)
        assert not (tmp_path / "out").exists()


def test_json_counts_what_was_drawn(run, tmp_path):
    mask = np.repeat(np.arange(4, dtype=np.uint8), 10)[:, None].repeat(30, axis=1)
    for name in ("a", "b"):
        Image.new("RGB", (30, 40)).save(tmp_path / f"{name}.png")
    write_coco(tmp_path / "all.json", {"a.png": mask, "b.png": mask}, NAMES, polygons=False, groups=GROUPS)
    code, out, _ = run("data", "convert", "coco", tmp_path / "all.json", tmp_path / "out", "--json", "--copy")
    found = json.loads(out)
    assert code == 0 and found["splits"] == {"train": 1, "val": 1} and found["written"] == found["masks"] == 2
    assert found["images"] == {"linked": 0, "copied": 2} and found["config"] == str(tmp_path / "out" / "cfg.yaml")
    assert found["counts"]["objects"] == 8 and found["ignored"] == 0 and found["without_label"] == []
    again = json.loads(run("data", "convert", "coco", tmp_path / "all.json", tmp_path / "out", "--json")[1])
    assert again == found | {"written": 0}
