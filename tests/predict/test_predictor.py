"""The masks of one image are those of the network."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seghiero_core import load
from seghiero_core.benchmarking.memory import peak_allocated
from seghiero_core.checkpoint import read_checkpoint
from seghiero_core.decode import decode
from seghiero_core.decode_modes import MODES
from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.losses import bands
from seghiero_core.model.factories import build_trained_model
from seghiero_core.predict.picture import open_picture
from seghiero_core.predict.predictor import Predictor


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


def test_predictor_is_a_plain_value(camvid_hierarchy):
    """The API's parts go together without a checkpoint."""
    predictor = Predictor(camvid_hierarchy, forward=lambda images: images[:, :1].float() * torch.ones(1, 11, 1, 1))
    found = predictor(np.zeros((5, 7, 3), np.uint8))
    assert {level: ids.shape for level, ids in found.ids.items()} == dict.fromkeys(("leaf", "level1", "level2"), (5, 7))


def test_tile_size_is_rounded_up_and_alone_decides(tiny_run, photo):
    predictor = load(tiny_run, tile=100, overlap=20)
    assert (predictor.tile, predictor.overlap) == (128, 32)
    assert predictor.is_tiled(open_picture(photo)) and not predictor.is_tiled(open_picture(photo[:128, :128]))
    assert not load(tiny_run).is_tiled(open_picture(photo))


@pytest.fixture(scope="module")
def loaded(tiny_run):
    return load(tiny_run, device="cpu")


@settings(derandomize=True, max_examples=25, deadline=None)
@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 70)),
    mode=st.sampled_from(MODES),
    confidence=st.sampled_from([None, 0.3, 0.7]),
    band=st.sampled_from([1, 5000, 10**9]),
    images=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_bands_equal_the_whole(loaded, size, mode, confidence, band, images, seed):
    """Logits are the same to the last bit, and a softmax is rounded by where a pixel lies among the others."""
    predictor = dataclasses.replace(loaded, mode=mode, confidence=confidence)
    rng = np.random.default_rng(seed)
    pictures = [open_picture(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for _ in range(images)]
    (whole,) = dataclasses.replace(predictor, coarse_forward=None).pieces(pictures, scores=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(bands.BAND, "cpu", band)
        (found,) = predictor.pieces(pictures, scores=True)
    for one, other in zip(found, whole, strict=True):
        assert one.size == size
        for name, error in (("ids", 0), ("confidence", 1e-6), ("scores", 1e-3)):  # of float16 one step
            for a, b in zip(getattr(one, name), getattr(other, name), strict=True):
                assert a.dtype == b.dtype
                np.testing.assert_allclose(a, b, rtol=0, atol=error)


def test_logits_of_the_image_are_never_stored(loaded, monkeypatch):
    monkeypatch.setitem(bands.BAND, "cpu", 2**14)
    picture = open_picture(np.zeros((512, 512, 3), np.uint8))
    logits, stride = loaded.coarse_forward(torch.zeros(1, 3, 512, 512, dtype=torch.uint8))
    held = dataclasses.replace(loaded, coarse_forward=lambda images: (logits, stride))
    list(held.pieces([picture]))
    peak = peak_allocated(lambda: list(held.pieces([picture])), torch.device("cpu"))
    assert peak < logits.nbytes * stride**2 / 4


def test_augmented_images_are_decoded_from_whole_logits(tiny_run):
    assert load(tiny_run, device="cpu", tta=["flip"]).coarse_forward is None
