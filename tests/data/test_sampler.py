"""What an epoch draws: every sample of a source equally often, as often as its weight says, from any start."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seghiero_core.data.sampler import EpochSampler, draws_per_epoch

SOURCES = st.lists(
    st.tuples(st.integers(1, 12), st.one_of(st.sampled_from([0.01, 0.5, 1, 2, 3]), st.floats(0.05, 4))),
    min_size=1,
    max_size=4,
)
SEEDS = st.integers(0, 2**32 - 1)


def keys_of(sampler, epoch, start=0):
    sampler.start_epoch(epoch, start)
    keys = list(sampler)
    assert len(keys) == len(sampler)
    return keys


@settings(max_examples=60, deadline=None)
@given(SOURCES, SEEDS, st.integers(1, 7))
def test_every_sample_of_a_source_is_drawn_equally_often(sources, seed, epochs):
    lengths, weights = zip(*sources, strict=True)
    sampler = EpochSampler(lengths, seed, weights=weights)
    drawn: Counter[int] = Counter()
    for epoch in range(epochs):
        keys = keys_of(sampler, epoch)
        assert len(set(keys)) == len(keys) and {e for e, *_ in keys} == {epoch}
        here = Counter(index for _, index, _ in keys)
        for index, count in here.items():  # repeats are numbered
            assert sorted(repeat for _, i, repeat in keys if i == index) == list(range(count))
        drawn.update(here)
    begin = 0
    for length, weight in sources:
        counts = [drawn[index] for index in range(begin, begin + length)]
        assert sum(counts) == epochs * max(1, round(weight * length)) == epochs * draws_per_epoch(length, weight)
        assert max(counts) - min(counts) <= 1
        begin += length
    assert set(drawn) <= set(range(begin))


@settings(max_examples=60, deadline=None)
@given(SOURCES, SEEDS, st.integers(0, 9), st.integers(1, 6))
def test_an_epoch_equals_the_stream_written_out_and_resumes_anywhere(sources, seed, epoch, per_step):
    """The reference builds the whole stream of each source up to this epoch, one draw after the other."""
    lengths, weights = zip(*sources, strict=True)
    expected, begin = [], 0
    for source, (length, weight) in enumerate(sources):
        draws = max(1, round(weight * length))
        stream: list[int] = []
        while len(stream) < (epoch + 1) * draws:
            rng = np.random.default_rng((seed, len(stream) // length, source, 0xD4A3))
            stream += rng.permutation(length).tolist()
        here = sorted(stream[epoch * draws : (epoch + 1) * draws])
        expected += [(epoch, begin + index, here[:position].count(index)) for position, index in enumerate(here)]
        begin += length
    order = np.random.default_rng((seed, epoch, 0, 0x5EED)).permutation(len(expected))
    whole = [expected[i] for i in order]
    if len(whole) >= per_step:
        whole = whole[: len(whole) // per_step * per_step]
    sampler = EpochSampler(lengths, seed, per_step, weights)
    assert keys_of(sampler, epoch) == whole
    for start in range(len(whole) + 2):
        assert keys_of(sampler, epoch, start) == whole[start:]


@pytest.mark.parametrize("lengths", [(50,), (20, 1, 29)])
@pytest.mark.parametrize("weights", [None, "ones"])
def test_with_weights_of_one_the_order_is_that_of_one_data_set(lengths, weights):
    sampler = EpochSampler(lengths, 7, 8, None if weights is None else [1.0] * len(lengths))
    for epoch in (0, 3):
        order = np.random.default_rng((7, epoch, 0, 0x5EED)).permutation(50)[:48].tolist()
        assert keys_of(sampler, epoch) == [(epoch, index, 0) for index in order]


def test_epochs_of_half_a_source_differ_and_together_have_all():
    sampler = EpochSampler([40, 3], 1, weights=[0.5, 1])
    one, two = ({index for _, index, _ in keys_of(sampler, epoch) if index < 40} for epoch in (0, 1))
    assert len(one) == len(two) == 20 and one | two == set(range(40)) and one != set(range(20))


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 20), min_size=2, max_size=12),
    window=st.integers(1, 4),
    seed=st.integers(0, 3),
    epoch=st.integers(0, 3),
    plain=st.integers(0, 30),
    weight=st.sampled_from([0.5, 1, 2]),
)
def test_few_blocks_are_open_at_a_time(sizes, window, seed, epoch, plain, weight):
    """The blocks of a source overlap in a window; what is drawn, and how often, is the same as without blocks."""
    blocks = [(np.repeat(np.arange(len(sizes)), sizes), window), *([None] if plain else [])]
    lengths, weights = [sum(sizes), *([plain] if plain else [])], [weight, *([1] if plain else [])]
    sampler = EpochSampler(lengths, seed, 1, weights, blocks)
    without = EpochSampler(lengths, seed, 1, weights)
    for each in (sampler, without):
        each.start_epoch(epoch)
    draws = list(sampler)
    assert sorted(draws) == sorted(without) and list(sampler) == draws
    block_of_draw = [blocks[0][0][index] for _, index, _ in draws if index < lengths[0]]
    first = {block: block_of_draw.index(block) for block in set(block_of_draw)}
    last = {block: position for position, block in enumerate(block_of_draw)}
    for position in range(len(block_of_draw)):
        assert sum(first[block] <= position <= last[block] for block in first) <= window
    sampler.start_epoch(epoch, start=len(draws) // 3)
    assert list(sampler) == draws[len(draws) // 3 :]


def test_blocks_come_in_another_order_in_every_epoch():
    sampler = EpochSampler([40], 0, 1, None, [(np.repeat(np.arange(20), 2), 1)])
    orders = set()
    for epoch in range(5):
        sampler.start_epoch(epoch)
        orders.add(tuple(index // 2 for _, index, _ in sampler))
    assert len(orders) == 5
