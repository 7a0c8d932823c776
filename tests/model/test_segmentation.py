"""The assembled model: what it gives covers the image, not the padding."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from seghiero_core.hierarchy.tree import Hierarchy
from seghiero_core.losses.bands import upsample
from seghiero_core.losses.triplet import tree_triplet
from seghiero_core.model.factories import build_model
from seghiero_core.model.segmentation import SegmentationModel

TWO = Hierarchy.from_config({"labels": ["left", "right"]})
every_size = pytest.mark.parametrize("size", [(72, 72), (100, 72), (72, 100), (128, 96), (71, 99), (1, 5)])
every_cell = pytest.mark.parametrize("cell", [4, 8, 32])


class Averages(nn.Module):
    """A head whose embedding is the average of each cell of the padded image, of unit length if asked for."""

    def __init__(self, cell: int, unit_length: bool):
        super().__init__()
        self.cell, self.unit_length = cell, unit_length

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        embedding = F.avg_pool2d(x, self.cell)
        return x, F.normalize(embedding, dim=1) if self.unit_length else embedding


def model(cell: int, *, unit_length: bool) -> SegmentationModel:
    """It takes images as they are, apart from the padding."""
    statistics = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255,) * 3}
    return SegmentationModel(nn.Identity(), Averages(cell, unit_length), stride=32, **statistics).eval()


def positions(height: int, width: int) -> torch.Tensor:
    """1,3,H,W: the row and the column (px) of each pixel's center, and 0."""
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([rows, columns, torch.zeros_like(rows)])[None]


@every_size
@every_cell
def test_a_label_is_read_within_half_a_cell_of_its_embedding(size, cell):
    image = positions(*size)
    embedding = model(cell, unit_length=False)(image).embedding
    assert list(embedding.shape[2:]) == [max(1, math.ceil(side / cell - 0.5)) for side in size]
    at_label = F.interpolate(image, size=embedding.shape[2:], mode="nearest-exact")
    if min(size) >= cell:  # else the padding repeats the last pixel, and a cell's average lies near it
        assert (embedding - at_label).abs().max() <= cell / 2


@pytest.mark.parametrize("size", [(72, 72), (100, 72), (72, 100), (128, 96)])
@pytest.mark.parametrize("cell", [4, 8])
@pytest.mark.parametrize("axis", [0, 1])
def test_the_triplet_loss_of_embeddings_that_equal_the_labels_is_zero(size, cell, axis):
    """Two halves at right angles, each equal to its label: a label from the other half would make it positive."""
    edge = size[axis] // 2 // cell * cell
    target = (positions(*size)[:, axis] > edge).long()
    image = F.one_hot(target, 3).movedim(3, 1).float()
    embedding = model(cell, unit_length=True)(image).embedding
    for seed in range(3):
        torch.manual_seed(seed)
        assert tree_triplet(embedding, target, TWO, margin=0.5, scale=0.0, samples=2000) == 0


@pytest.mark.parametrize("size", [(64, 96), (71, 99), (33, 5)])
@pytest.mark.parametrize("head", [{"type": "segformer", "proj_dim": 16}, {"type": "aspp", "proj_dim": 16}])
def test_logits_that_the_loss_upsamples_are_those_that_the_model_upsamples(size, head):
    torch.manual_seed(0)
    config = {"backbone": {"type": "resnet", "depth": 18}, "head": head}
    network = build_model(config, 2, auxiliary=True)
    network.auxiliary[1].p = 0.0  # dropout would differ between the two
    network.head.dropout.p = 0.0
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    whole, coarse = network(images), network(images, upsample=False)
    assert (coarse.stride, coarse.auxiliary_stride, whole.stride) == (4, 16, 1)
    assert coarse.logits.shape[2:] == tuple(math.ceil(side / 32) * 8 for side in size)
    torch.testing.assert_close(upsample(coarse.logits, 4, *size), whole.logits)
    torch.testing.assert_close(upsample(coarse.auxiliary_logits, 16, *size), whole.auxiliary_logits)


def test_logits_of_a_size_that_does_not_divide_the_image_are_upsampled_by_the_model():
    class Odd(nn.Module):
        def forward(self, x):
            return F.avg_pool2d(x, 5), None

    network = SegmentationModel(nn.Identity(), Odd(), mean=(0.0,) * 3, std=(1 / 255,) * 3, stride=32)
    output = network(positions(40, 60), upsample=False)
    assert output.stride == 1 and output.logits.shape[2:] == (64, 64)
    torch.testing.assert_close(output.logits[..., :40, :60], network(positions(40, 60)).logits)
