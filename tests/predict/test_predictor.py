"""The masks of one image are those of the network."""

from __future__ import annotations

import numpy as np
import torch

from seghiero_core import load
from seghiero_core.checkpoint import read_checkpoint
from seghiero_core.decode import decode
from seghiero_core.hierarchy.tree import Hierarchy
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
