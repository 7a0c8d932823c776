"""Sharing groups of images out to splits, so that each split gets its share of every class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_PASSES = 10  # over all groups, at most
_BETTER = 1e-12


def stratify(pixels: np.ndarray, images: np.ndarray, shares: Sequence[float], seed: int) -> np.ndarray:
    """Choose a split for each group, with the asked share of the images and of the pixels of each class in each split.

    The groups with the greatest share of any class come first, and each goes to the split that lacks most of what it
    holds: iterative stratification (Sechidis, Tsoumakas and Vlahavas, "On the Stratification of Multi-Label Data",
    ECML PKDD 2011), for numbers of pixels instead of labels. Then groups change their split as long as that brings the
    shares closer to the asked ones. The distance is the sum of the squared differences, of which the images count as
    much as all classes together.

    Args:
        pixels: G,C int, the pixels of each class in each group.
        images: The number of images of each group, of shape (G).
        shares: K shares that sum to 1.
        seed: Decides between equal groups.

    Returns:
        The index of each group's split, of shape (G); each split has a group, if there are as many.
    """
    random = np.random.default_rng(seed)
    fractions, weights = _fractions(pixels, images)
    order = random.permutation(len(images))
    order = order[np.argsort(-fractions[order].max(axis=1), kind="stable")]
    wanted = np.array(shares, dtype=np.float64)[:, None]
    held = np.zeros((len(shares), fractions.shape[1]))
    chosen = np.zeros(len(images), dtype=np.int64)

    def costs(group: int) -> np.ndarray:
        """How much further each split gets from its shares with a group that no split holds: K."""
        added = fractions[group]
        return (weights * added * (2 * (held - wanted) + added)).sum(axis=1)

    def put(group: int, split: int) -> None:
        chosen[group] = split
        held[split] += fractions[group]

    def cost_of_moving(group: int) -> np.ndarray:
        """How much further from the asked shares each split would be that takes a group over: K."""
        held[chosen[group]] -= fractions[group]
        found = costs(group)
        held[chosen[group]] += fractions[group]
        return found - found[chosen[group]]

    def move(group: int, split: int) -> None:
        held[chosen[group]] -= fractions[group]
        put(group, split)

    for group in order:
        put(group, int(costs(group).argmin()))
    sizes = np.bincount(chosen, minlength=len(shares))
    while (sizes == 0).any() and (sizes > 1).any():
        split = int(sizes.argmin())
        movable = np.flatnonzero(sizes[chosen] > 1)
        move(min(movable, key=lambda group: cost_of_moving(group)[split]), split)
        sizes = np.bincount(chosen, minlength=len(shares))
    for _ in range(_PASSES):
        before = chosen.copy()
        for group in random.permutation(len(images)):
            change = cost_of_moving(group)
            best = int(change.argmin())
            if change[best] < -_BETTER and (chosen == chosen[group]).sum() > 1:
                move(group, best)
        if (chosen == before).all():
            break
    return chosen


def _fractions(pixels: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What fraction of each class, and last of the images, each group has: G,C+1; and the weights of these: C+1."""
    pixels = pixels[:, pixels.any(axis=0)]
    amounts = np.concatenate([pixels, images[:, None]], axis=1).astype(np.float64)
    classes = pixels.shape[1]
    return amounts / amounts.sum(axis=0), np.array([*[1 / max(1, classes)] * classes, 1.0])
