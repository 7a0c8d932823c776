"""Sharing groups out: every group once, each split with its share, the same for the same seed."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seghiero_core.data.stratify import stratify


def distance(chosen, pixels, images, shares):
    """The squared differences from the asked shares, written out."""
    total = 0.0
    classes = [column for column in pixels.T if column.sum()]
    for split, share in enumerate(shares):
        for column in classes:
            total += (column[chosen == split].sum() / column.sum() - share) ** 2 / len(classes)
        total += (images[chosen == split].sum() / images.sum() - share) ** 2
    return total


@st.composite
def groups(draw, least=3, most=60):
    count, classes = draw(st.integers(least, most)), draw(st.integers(0, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    pixels = rng.integers(0, 1000, (count, classes)) * (rng.random((count, classes)) < draw(st.floats(0.1, 1)))
    shares = draw(st.sampled_from([(0.8, 0.2), (0.5, 0.5), (0.7, 0.2, 0.1), (0.99, 0.01)]))
    return pixels, rng.integers(1, 9, count), shares, draw(st.integers(0, 9))


@settings(deadline=None, max_examples=60)
@given(groups())
def test_every_split_has_a_group_and_the_seed_decides(case):
    pixels, images, shares, seed = case
    chosen = stratify(pixels, images, shares, seed)
    assert chosen.shape == images.shape and set(chosen.tolist()) == set(range(len(shares)))
    assert np.array_equal(chosen, stratify(pixels, images, shares, seed))


@settings(deadline=None, max_examples=60)
@given(groups())
def test_no_group_could_move_to_come_closer_to_the_shares(case):
    pixels, images, shares, seed = case
    chosen = stratify(pixels, images, shares, seed)
    reached = distance(chosen, pixels, images, shares)
    for group, split in product(range(len(images)), range(len(shares))):
        other = chosen.copy()
        other[group] = split
        if len(set(other.tolist())) == len(shares):
            assert distance(other, pixels, images, shares) > reached - 1e-9


@settings(deadline=None, max_examples=25)
@given(groups(3, 7))
def test_few_groups_come_close_to_the_best_choice(case):
    pixels, images, shares, seed = case
    every = (np.array(choice) for choice in product(range(len(shares)), repeat=len(images)))
    best = min(distance(choice, pixels, images, shares) for choice in every if len(set(choice.tolist())) == len(shares))
    assert distance(stratify(pixels, images, shares, seed), pixels, images, shares) <= best + 0.15


@pytest.mark.parametrize("shares", [(0.8, 0.2), (0.7, 0.2, 0.1)])
@pytest.mark.parametrize("seed", range(3))
def test_shares_of_many_images_are_near_the_asked(shares, seed):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(1, 1000, (400, 8)) * (rng.random((400, 8)) < rng.uniform(0.1, 1, 8))
    chosen = stratify(pixels, np.ones(400, np.int64), shares, seed)
    for split, share in enumerate(shares):
        assert abs((chosen == split).mean() - share) < 0.01
        assert np.abs(pixels[chosen == split].sum(axis=0) / pixels.sum(axis=0) - share).max() < 0.02
    assert not np.array_equal(chosen, stratify(pixels, np.ones(400, np.int64), shares, seed + 1))
