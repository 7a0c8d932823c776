"""Loading a trained network, and the sliding window, against direct computation."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F

from seghiero_core import load
from seghiero_core.checkpoint import read_checkpoint
from seghiero_core.decode import decode
from seghiero_core.errors import CheckpointError, DataError, DeviceError, UsageError
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.model.factories import build_trained_model
from seghiero_core.predict.picture import Picture, open_picture
from seghiero_core.predict.predictor import Predictor
from seghiero_core.predict.tiling import ALIGNMENT, tile_spans, tiled_logits
from seghiero_core.predict.tta import SCALES, with_augmentation
from support.processes import ENVIRONMENT
from support.tiny import RADIUS, TINY, save_untrained

quick = settings(max_examples=40, derandomize=True, deadline=None)


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """H,W,3 uint8 with structure at every scale."""
    rng = np.random.default_rng(3)
    small = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    large = np.asarray(small.resize((523, 391), Image.Resampling.BICUBIC), dtype=np.int16)
    return np.clip(large + rng.integers(-20, 20, large.shape), 0, 255).astype(np.uint8)


def test_masks_are_those_of_the_network(tiny_run, photo):
    checkpoint = read_checkpoint(tiny_run / "best")
    hierarchy = Hierarchy.from_config(checkpoint.config.classes)
    model = build_trained_model(checkpoint.config, len(hierarchy.leaves), checkpoint.model_tensors())
    with torch.no_grad():
        decoded = decode(model(torch.from_numpy(photo).permute(2, 0, 1)[None]).logits, hierarchy)
    found = load(tiny_run, device="cpu")(photo)
    assert list(found.ids) == ["leaf", "level1", "level2"]
    assert len(np.unique(found.ids["leaf"])) > 3, "an image of one class shows nothing"
    for number, name in enumerate(found.ids):
        assert (found.ids[name] == decoded.ids[number][0].numpy()).mean() > 0.9999
        np.testing.assert_allclose(found.confidence[name], decoded.confidence[number][0].numpy(), atol=1e-4)


def test_every_kind_of_image_gives_the_same(tiny_run, photo, tmp_path):
    predict = load(tiny_run, device="cpu")
    Image.fromarray(photo).save(tmp_path / "a.png")
    tensor = torch.from_numpy(photo).permute(2, 0, 1)
    expected = predict(photo).ids
    same = (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(photo), photo.astype(np.float64))
    for image in (*same, tensor, tensor.float()):
        for level, ids in predict(image).ids.items():
            assert np.array_equal(ids, expected[level])
    gray = photo[..., 0]
    assert np.array_equal(predict(gray).ids["leaf"], predict(np.stack([gray] * 3, axis=-1)).ids["leaf"])


def test_run_link_folder_and_file_are_one_checkpoint(tiny_run, photo):
    expected = load(tiny_run)(photo).ids["leaf"]
    folder = (tiny_run / "best").resolve()
    for path in (tiny_run / "last", folder, folder / "model.safetensors"):
        assert np.array_equal(load(path)(photo).ids["leaf"], expected)


def test_loading_never_touches_the_network(starter_folder, photo, monkeypatch):
    overrides = ["backbone={type: resnet, depth: 18, pretrained: true}", "output.name=hub", TINY[1]]
    config = save_untrained(starter_folder / "cfg.yaml", overrides)

    def refuse(*_: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert load(config.run_dir, device="cpu")(photo[:64, :64]).ids["leaf"].shape == (64, 64)


def test_what_only_training_needs_is_left_out(starter_folder, photo):
    config = save_untrained(starter_folder / "cfg.yaml", [*TINY, "output.name=auxiliary"], auxiliary=True)
    tensors = read_checkpoint(config.run_dir / "best").model_tensors()
    assert any(name.startswith("auxiliary.") for name in tensors)
    assert load(config.run_dir)(photo).ids["leaf"].shape == photo.shape[:2]


def test_import_leaves_torch_alone():
    code = "import seghiero_core, sys; assert 'torch' not in sys.modules; from seghiero_core import load; assert load"
    subprocess.run([sys.executable, "-c", code], check=True, env=ENVIRONMENT)
    with pytest.raises(ImportError):
        pass


# ── the sliding window ───────────────────────────────────────────────────────────────────────────────────────────────


@quick
@given(st.integers(1, 3000), st.integers(2, 10), st.integers(1, 5))
def test_spans_cover_with_one_overlap(length, tile_units, overlap_units):
    tile, overlap = tile_units * ALIGNMENT, min(overlap_units, tile_units // 2) * ALIGNMENT
    spans = tile_spans(length, tile, overlap)
    assert spans[0][0] == 0 and spans[-1][1] == length
    assert all(start % ALIGNMENT == 0 and 0 < end - start <= tile for start, end in spans)
    assert all(before[1] - after[0] == overlap for before, after in zip(spans, spans[1:], strict=False))
    seen = np.zeros(length, int)
    for start, end in spans:
        seen[start:end] += 1
    assert seen.min() == 1 and seen.max() <= 2


@quick
@given(st.integers(1, 210), st.integers(1, 210), st.integers(1, 5))
def test_blending_is_a_weighted_mean(height, width, batch_size):
    """Against one whole-size sum of weights times values, divided by the sum of weights."""
    tile, overlap = 96, 32
    image = np.random.default_rng(height * 211 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    calls = []

    def forward(images):
        calls.append(len(images))
        inside = torch.arange(images.shape[-1]) + 3 * torch.arange(images.shape[-2])[:, None]
        return images[:, :2].float() + inside  # differs with the place in the tile

    picture = Picture(height, width, lambda t, b, left, right: image[t:b, left:right])
    found = torch.full((2, height, width), torch.nan)
    for top, left, piece in tiled_logits(picture, forward, tile=tile, overlap=overlap, batch_size=batch_size):
        there = found[:, top : top + piece.shape[1], left : left + piece.shape[2]]
        assert there.isnan().all(), "a pixel came twice"
        there.copy_(piece)
    total, weights = torch.zeros(2, height, width), torch.zeros(height, width)
    for top, bottom in tile_spans(height, tile, overlap):
        for left, right in tile_spans(width, tile, overlap):
            crop = torch.from_numpy(image[top:bottom, left:right].copy()).permute(2, 0, 1)[None]
            weight = _ramp(top, bottom, height, overlap)[:, None] * _ramp(left, right, width, overlap)
            total[:, top:bottom, left:right] += weight * forward(crop)[0]
            weights[top:bottom, left:right] += weight
    torch.testing.assert_close(found, total / weights, atol=1e-3, rtol=1e-5)
    assert max(calls) <= batch_size


def _ramp(start, end, length, overlap):
    place = torch.arange(start, end) + 0.5
    weight = torch.ones(end - start)
    if start > 0:
        weight = weight.minimum((place - start) / overlap)
    if end < length:
        weight = weight.minimum((end - place) / overlap)
    return weight


def test_tiles_equal_the_whole_away_from_their_borders(tiny_run):
    rng = np.random.default_rng(5)
    small = Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    image = np.asarray(small.resize((1501, 1003), Image.Resampling.BICUBIC))
    whole = load(tiny_run, device="cpu")
    batch = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]
    expected = whole.forward(batch)[0]
    found = torch.empty_like(expected)
    for top, left, piece in tiled_logits(open_picture(image), whole.forward, tile=640, overlap=64, batch_size=2):
        found[:, top : top + piece.shape[1], left : left + piece.shape[2]] = piece
    far = np.ones(image.shape[:2], bool)
    for axis, length in enumerate(image.shape[:2]):
        inner = [end for _, end in tile_spans(length, 640, 64)[:-1]] + [s for s, _ in tile_spans(length, 640, 64)[1:]]
        near = np.abs(np.arange(length)[:, None] - np.array(inner)).min(axis=1) < RADIUS
        far &= ~(near[:, None] if axis == 0 else near)
    assert far.mean() > 0.1
    torch.testing.assert_close(found[:, far], expected[:, far], atol=1e-4, rtol=1e-4)
    # and near them nearly: the weight of a tile is small where it misses what lies beyond its border
    assert (found.argmax(0) == expected.argmax(0)).float().mean() > 0.98
    tiled = load(tiny_run, device="cpu", tile=640, overlap=64)(image)
    assert np.array_equal(tiled.ids["leaf"], decode(found[None], whole.hierarchy).ids[0][0].numpy())


def test_tile_size_is_rounded_up_and_alone_decides(tiny_run, photo):
    predictor = load(tiny_run, tile=100, overlap=20)
    assert (predictor.tile, predictor.overlap) == (128, 32)
    assert predictor.is_tiled(open_picture(photo)) and not predictor.is_tiled(open_picture(photo[:128, :128]))
    assert not load(tiny_run).is_tiled(open_picture(photo))


# ── test-time augmentation ───────────────────────────────────────────────────────────────────────────────────────────


def test_flip_is_the_mean_of_both_sides(tiny_run, photo):
    plain = load(tiny_run, device="cpu").forward
    images = torch.from_numpy(photo.copy()).permute(2, 0, 1)[None]
    flipped = with_augmentation(plain, ["flip"])
    torch.testing.assert_close(flipped(images), (plain(images) + plain(images.flip(3)).flip(3)) / 2)
    torch.testing.assert_close(flipped(images.flip(3)).flip(3), flipped(images))


def test_scales_are_the_mean_over_scales(tiny_run, photo):
    plain = load(tiny_run, device="cpu").forward
    images = torch.from_numpy(photo.copy()).permute(2, 0, 1)[None]
    size = images.shape[-2:]
    expected = 0
    for scale in SCALES:
        scaled_size = [round(side * scale) for side in size]
        scaled = F.interpolate(images.float(), scaled_size, mode="bilinear", antialias=True).round().to(torch.uint8)
        expected = expected + F.interpolate(plain(scaled), size, mode="bilinear") / len(SCALES)
    found = with_augmentation(plain, ["scales"])(images)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    both = with_augmentation(plain, ["flip", "scales"])(images[..., :1, :1])
    assert both.shape[-2:] == (1, 1) and both.isfinite().all()


# ── what a user can get wrong ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"mode": "leave"}, UsageError, "Did you mean 'leaf'"),
        ({"tta": ["flop"]}, UsageError, "Did you mean 'flip'"),
        ({"tile": 128, "overlap": 65}, UsageError, "half a tile"),
        ({"overlap": 0}, UsageError, "half a tile"),
        ({"batch_size": 0}, UsageError, "--batch-size"),
        ({"device": "gpu"}, DeviceError, "gpu"),
    ],
)
def test_options_that_there_are_not(tiny_run, options, error, words):
    with pytest.raises(error, match=words):
        load(tiny_run, **options)


def test_paths_that_are_no_model(tiny_run, tmp_path):
    with pytest.raises(UsageError, match="no such run"):
        load(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="holds no checkpoint"):
        load(tmp_path)
    (tmp_path / "a.pth").touch()
    with pytest.raises(UsageError, match="no checkpoint"):
        load(tmp_path / "a.pth")
    with pytest.raises(UsageError, match="no such file"):
        load(tmp_path / "a.onnx")
    (tmp_path / "b.onnx").write_bytes(b"not a graph")
    with pytest.raises(CheckpointError, match="b.onnx can't be read as ONNX"):
        load(tmp_path / "b.onnx")


def test_onnx_of_others_is_refused(tmp_path):
    import onnx

    info = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "ab"]
    node = onnx.helper.make_node("Relu", ["a"], ["b"])
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", info[:1], info[1:])), tmp_path / "c.onnx")
    with pytest.raises(UsageError, match="not written by `seghiero export`"):
        load(tmp_path / "c.onnx")


def test_checkpoint_of_another_version(starter_folder):
    config = save_untrained(starter_folder / "cfg.yaml", [*TINY, "output.name=version"])
    manifest = config.run_dir / "best" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 99, "seghiero_version": "9.9"}))
    with pytest.raises(CheckpointError, match=r"seghiero 9\.9 in format 99"):
        load(config.run_dir)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((4, 4, 4), np.uint8), r"H,W,3"),
        (np.zeros((0, 4, 3), np.uint8), "empty"),
        (np.full((4, 4, 3), 0.5), "multiply them by 255"),
        (np.full((4, 4, 3), 300), "0..255"),
        (np.full((4, 4, 3), np.nan), "0..255"),
        (torch.zeros(4, 4, 3), "3,H,W"),
    ],
)
def test_arrays_that_are_no_image(tiny_run, image, words):
    with pytest.raises(UsageError, match=words):
        load(tiny_run)(image)


def test_files_that_are_no_image(tiny_run, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"a\.jpg can't be read"):
        load(tiny_run)(tmp_path / "a.jpg")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "f.tiff")
    with pytest.raises(DataError, match="floating-point"):
        load(tiny_run)(tmp_path / "f.tiff")
    Image.new("RGB", (50, 40)).save(tmp_path / "big.png")
    with pytest.raises(DataError, match="50x40 px, more than the limit of 1999"):
        open_picture(tmp_path / "big.png", max_pixels=1999)


def test_predictor_is_a_plain_value(camvid_hierarchy):
    """The API's parts go together without a checkpoint."""
    predictor = Predictor(camvid_hierarchy, forward=lambda images: images[:, :1].float() * torch.ones(1, 11, 1, 1))
    found = predictor(np.zeros((5, 7, 3), np.uint8))
    assert {level: ids.shape for level, ids in found.ids.items()} == dict.fromkeys(("leaf", "level1", "level2"), (5, 7))
