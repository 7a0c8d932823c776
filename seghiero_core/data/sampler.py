"""Which samples an epoch draws, and in which order: a function of the seed and the epoch alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

# Fourth words of entropy, so that shuffling and drawing share no random stream with each other or with augmentation,
# whose fourth word is the repeat of a sample in its epoch and never gets so high.
_SHUFFLE_STREAM = 0x5EED
_DRAW_STREAM = 0xD4A3

Draw = tuple[int, int, int]
"""The epoch, or which of its variants; the index of the sample; and how often the epoch has drawn it before."""


Blocks = tuple[np.ndarray, int]
"""The block of each sample, N int64, and of how many blocks to draw at a time."""


class EpochSampler(Sampler):
    """Sampler of draws, shuffled by (seed, epoch) alone, as many as fill whole steps.

    In each epoch a source of n samples and weight w gives w * n draws, rounded. They go on where those of the epoch
    before ended, in an endless row of random orders of the source's samples. So every sample of a source is drawn
    equally often: with a weight of 2 twice per epoch, with 0.5 once in two epochs.

    The draws left over after the last whole step are dropped; they are others in every epoch. Call `start_epoch`
    before each pass. It is deliberately not called `set_epoch`: accelerate's loader calls a method of that name with
    its own count at every pass, which would undo a resumed position.

    Args:
        lengths: Number of samples of each source, which stand one after the other.
        seed: The run's `training.seed`.
        per_step: Samples per optimizer step, over all processes and accumulated batches.
        weights: The weight of each source, above 0. Default: 1 for all.
        blocks: For each source, the block that each of its samples is stored in, N int64, and of how many blocks to
            draw at a time; None where the order doesn't matter. Default: None for all.
        variants: After how many epochs their augmentation repeats; the order never does. Default: never.

    Attributes:
        length: Number of draws per epoch.
        used: Those that fill whole steps.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        seed: int,
        per_step: int = 1,
        weights: Sequence[float] | None = None,
        blocks: Sequence[Blocks | None] = (),
        variants: int | None = None,
    ) -> None:
        weights = weights or [1] * len(lengths)
        self.blocks = tuple(blocks) or (None,) * len(lengths)
        self.lengths, self.seed = tuple(lengths), seed
        self.draws = tuple(draws_per_epoch(n, weight) for n, weight in zip(lengths, weights, strict=True))
        self.length = sum(self.draws)
        self.used = self.length - self.length % per_step if self.length >= per_step else self.length
        self.variants = variants
        self.epoch, self.start = 0, 0

    def start_epoch(self, epoch: int, start: int = 0) -> None:
        """Set the epoch of the next pass.

        Args:
            epoch: The epoch, from 0.
            start: Number of draws to skip at its start: those that all processes together have seen.
        """
        self.epoch, self.start = epoch, start

    def __iter__(self) -> Iterator[Draw]:
        variant = self.epoch % self.variants if self.variants else self.epoch
        counts = np.concatenate([self._counts(source) for source in range(len(self.lengths))])
        indices = np.repeat(np.arange(len(counts)), counts)
        repeats = np.arange(len(indices)) - np.repeat(counts.cumsum() - counts, counts)
        order = self._order(indices)
        return ((variant, int(indices[i]), int(repeats[i])) for i in order[self.start : self.used])

    def __len__(self) -> int:
        return max(0, self.used - self.start)

    def _order(self, indices: np.ndarray) -> np.ndarray:
        """A random order of the draws of an epoch, whose indices these are, source by source."""
        rng = np.random.default_rng((self.seed, self.epoch, 0, _SHUFFLE_STREAM))
        if not any(self.blocks):
            return rng.permutation(self.length)
        source_of_draw = np.repeat(np.arange(len(self.draws)), self.draws)
        mixed = rng.permutation(source_of_draw)
        order = np.empty(self.length, dtype=np.int64)
        first_sample = 0
        for source, blocks in enumerate(self.blocks):
            draws = np.flatnonzero(source_of_draw == source)
            if blocks is None:
                rng.shuffle(draws)
            else:
                # Block number k of a random order gets positions from k to k + window: so many overlap at any point.
                block_of_sample, window = blocks
                block = block_of_sample[indices[draws] - first_sample]
                place = rng.permutation(int(block_of_sample.max()) + 1)
                draws = draws[np.argsort(place[block] + window * rng.random(len(draws)), kind="stable")]
            order[mixed == source] = draws
            first_sample += self.lengths[source]
        return order

    def _counts(self, source: int) -> np.ndarray:
        """How often the epoch draws each sample of a source."""
        length, draws = self.lengths[source], self.draws[source]
        first, end = self.epoch * draws, (self.epoch + 1) * draws
        counts = np.zeros(length, dtype=np.int64)
        for cycle in range(first // length, -(-end // length)):
            begin, stop = max(0, first - cycle * length), min(length, end - cycle * length)
            if stop - begin == length:
                counts += 1
            else:
                rng = np.random.default_rng((self.seed, cycle, source, _DRAW_STREAM))
                counts[rng.permutation(length)[begin:stop]] += 1
        return counts


def draws_per_epoch(samples: int, weight: float) -> int:
    """Compute how many samples of a source an epoch draws.

    Args:
        samples: Number of samples of the source.
        weight: Its weight.

    Returns:
        Their product, rounded, and at least 1.
    """
    return max(1, round(weight * samples))
