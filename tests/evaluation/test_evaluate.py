"""The images that a validation shows: spread over the split, named, and the same in every epoch."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from seghiero_core.config.loading import load_config
from seghiero_core.evaluation.evaluate import evaluate
from seghiero_core.training import validation
from seghiero_core.training.loop import train
from support.tiny import TINY


class Constant(nn.Module):
    """Logits of the first class everywhere."""

    def forward(self, images, *, upsample):
        logits = torch.zeros(len(images), 4, *images.shape[-2:])
        logits[:, 0] = 1
        return SimpleNamespace(logits=logits, stride=1)


def batch(*indices):
    images = torch.stack([torch.full((3, 8, 8), index, dtype=torch.uint8) for index in indices])
    return {"image": images, "target": torch.zeros(len(indices), 8, 8, dtype=torch.int64), "index": indices}


@pytest.mark.parametrize(
    ("batches", "wanted", "shown"),
    [
        ([batch(i) for i in range(8)], [0, 2, 4, 6], [0, 2, 4, 6]),
        ([batch(0, 1, 2, 3), batch(4, 5, 6, 7)], [0, 2, 4, 6], [0, 2, 4, 6]),
        ([batch(1), batch(3), batch(5), batch(7)], [0, 2, 4, 6], [1, 3, 5, 7]),  # one of two processes
        ([batch(0, 1), batch(4, 5), batch(0, 1)], [0, 2, 3, 6], [0, 4]),  # the loader repeats samples to come out even
        ([batch(0)], [0], [0]),
        ([batch(0)], [], []),
    ],
)
def test_the_wanted_images_or_those_that_follow_are_returned(ragged, batches, wanted, shown):
    found = evaluate(Constant(), batches, ragged, accelerator=Accelerator(cpu=True), wanted=wanted).examples
    assert [example.index for example in found] == shown
    assert all((example.image == example.index).all() for example in found)


def test_validation_png_shows_images_from_the_whole_split_by_name(small, monkeypatch):
    val = small.parent / "val"
    for kind in ("images", "masks"):
        (val / kind / "town").mkdir()
        for i in range(2, 9):
            shutil.copy(val / kind / "0.png", val / kind / "town" / f"{i}.png")
    drawn, draw = [], validation.prediction_grid

    def grid(*arguments, captions):
        drawn.append(captions)
        return draw(*arguments, captions=captions)

    monkeypatch.setattr(validation, "prediction_grid", grid)
    train(load_config(small, TINY))
    assert drawn == [["0.png", "town/2.png", "town/4.png", "town/6.png"]] * 2
