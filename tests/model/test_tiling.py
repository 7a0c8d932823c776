"""The sliding window, against direct computation."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from seghiero_core import load
from seghiero_core.decode import decode
from seghiero_core.model.tiling import ALIGNMENT, Picture, tile_spans, tiled_logits
from seghiero_core.predict.picture import open_picture
from support.tiny import RADIUS

quick = settings(max_examples=40, derandomize=True, deadline=None)


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
