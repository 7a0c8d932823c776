"""Every loss against the same thing written out pixel by pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seghiero_core import losses
from seghiero_core.hierarchy.tree import IGNORE_INDEX, Hierarchy
from support.trees import CAMVID, classes_of_levels, hierarchies, paths, random_target

SIZE = (2, 3, 4)
few = settings(derandomize=True, max_examples=15, deadline=None)
seeds = st.integers(0, 2**16)


def draw(hierarchy, channels, seed):
    torch.manual_seed(seed)
    return torch.randn(SIZE[0], channels, *SIZE[1:], dtype=torch.float64) * 2, random_target(hierarchy, *SIZE)


def pixels(logits, target):
    """(logits of one pixel as a list, its label) of every pixel that is not ignored."""
    for z, y in zip(logits.movedim(1, 3).flatten(0, 2).tolist(), target.flatten().tolist(), strict=True):
        if y != IGNORE_INDEX:
            yield z, y


def softmax(z):
    total = sum(math.exp(v) for v in z)
    return [math.exp(v) / total for v in z]


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def check(loss, expected, *arguments, **options):
    value = loss(*arguments, **options)
    assert value.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@few
@given(hierarchy=hierarchies(), seed=seeds)
def test_leaf_losses(hierarchy, seed):
    num_leaves = len(hierarchy.leaves)
    z, target = draw(hierarchy, num_leaves, seed)
    of_label = [softmax(v)[y] for v, y in pixels(z, target) if y < num_leaves]
    check(losses.leaf_cross_entropy, mean(-math.log(p) for p in of_label), z, target, hierarchy)
    check(losses.focal, mean(-math.log(p) * (1 - p) ** 1.5 for p in of_label), z, target, hierarchy, gamma=1.5)


@few
@given(hierarchy=hierarchies(), seed=seeds)
def test_cross_entropies_of_levels(hierarchy, seed):
    z, target = draw(hierarchy, len(hierarchy), seed)
    leaves = range(len(hierarchy.leaves))
    marginal, level_wise = [], []
    weights = [2.0, *[1.0] * (len(hierarchy.levels) - 1)]
    for of_label in classes_of_levels(hierarchy):
        members = sorted({of_label[leaf] for leaf in leaves})
        sum_losses, level_losses = [], []
        for v, y in pixels(z, target):
            if (name := of_label[y]) is not None:
                p = softmax(v[: len(leaves)])
                sum_losses.append(-math.log(sum(p[leaf] for leaf in leaves if of_label[leaf] == name)))
                level_losses.append(-math.log(softmax([v[m] for m in members])[members.index(name)]))
        marginal.append(mean(sum_losses))
        level_wise.append(mean(level_losses))
    leaf_logits = z[:, : len(leaves)]
    check(losses.marginal_cross_entropy, mean(marginal), leaf_logits, target, hierarchy)
    check(losses.level_cross_entropy, mean(level_wise), z, target, hierarchy)
    expected = float(np.average(marginal, weights=weights))
    check(losses.marginal_cross_entropy, expected, leaf_logits, target, hierarchy, level_weights=weights)
    expected = float(np.average(level_wise, weights=weights))
    check(losses.level_cross_entropy, expected, z, target, hierarchy, level_weights=weights)


@few
@given(hierarchy=hierarchies(), seed=seeds)
def test_conditional_cross_entropy(hierarchy, seed):
    z, target = draw(hierarchy, len(hierarchy), seed)
    path = paths(hierarchy)
    parent = [p[-2] if len(p) > 1 else None for p in path]
    nll = []
    for v, y in pixels(z, target):
        p = 1.0
        for node in path[y]:
            siblings = [n for n in range(len(path)) if parent[n] == parent[node]]
            p *= softmax([v[n] for n in siblings])[siblings.index(node)]
        nll.append(-math.log(p))
    check(losses.conditional_cross_entropy, mean(nll), z, target, hierarchy)


@few
@given(hierarchy=hierarchies(), seed=seeds)
def test_losses_of_nodes(hierarchy, seed):
    z, target = draw(hierarchy, len(hierarchy), seed)
    path = paths(hierarchy)
    plain, coherent = [], []  # the probability given to what each known node is
    for v, y in pixels(z, target):
        s = [1 / (1 + math.exp(-value)) for value in v]
        for node in range(len(path)):
            if node in path[y]:
                plain.append(s[node])
                coherent.append(min(s[above] for above in path[node]))
            elif y not in path[node]:
                plain.append(1 - s[node])
                coherent.append(1 - max(s[under] for under in range(len(path)) if node in path[under]))
    check(losses.node_bce, mean(-math.log(p) for p in plain), z, target, hierarchy)
    check(losses.tree_min, mean(-math.log(p) for p in coherent), z, target, hierarchy)
    expected = mean(-math.log(p) * (1 - p) ** 2 for p in coherent)
    check(losses.focal_tree_min, expected, z, target, hierarchy)


@few
@given(hierarchy=hierarchies(), seed=seeds)
def test_dice_and_lovasz(hierarchy, seed):
    num_leaves = len(hierarchy.leaves)
    z, target = draw(hierarchy, num_leaves, seed)
    counted = [(softmax(v), y) for v, y in pixels(z, target) if y < num_leaves]
    of_dice, of_lovasz = [], []
    for c in sorted({y for _, y in counted}):
        p, truth = [q[c] for q, _ in counted], {i for i, (_, y) in enumerate(counted) if y == c}
        overlap = sum(p[i] for i in truth)
        of_dice.append(1 - (2 * overlap + 1) / (sum(p) + len(truth) + 1))
        errors = [1 - q if i in truth else q for i, q in enumerate(p)]
        order = sorted(range(len(p)), key=lambda i: -errors[i])

        def jaccard_loss(wrong, truth=truth):  # of the prediction that is wrong at just these pixels
            return 1 - len(truth - wrong) / len(truth | wrong)

        steps = [jaccard_loss(set(order[: i + 1])) - jaccard_loss(set(order[:i])) for i in range(len(order))]
        of_lovasz.append(sum(errors[i] * step for i, step in zip(order, steps, strict=True)))
    check(losses.dice, mean(of_dice), z, target, hierarchy)
    check(losses.lovasz, mean(of_lovasz), z, target, hierarchy)


@few
@given(hierarchy=hierarchies(), seed=seeds)
def test_tree_rules(hierarchy, seed):
    z, target = draw(hierarchy, len(hierarchy), seed)
    nodes = range(len(hierarchy))
    parent = [p[-2] if len(p) > 1 else None for p in paths(hierarchy)]
    scores = [[1 / (1 + math.exp(-value)) for value in v] for v, _ in pixels(z, target)]

    def breach(degrees):
        return mean(d**5 for d in degrees) ** 0.2

    composition, decomposition, exclusion = [], [], []
    for n in nodes:
        children = [c for c in nodes if parent[c] == n]
        siblings = [a for a in nodes if parent[a] == parent[n] and a != n]
        if parent[n] is not None:
            composition.append(breach([s[n] * (1 - s[parent[n]]) for s in scores]))
        if children:
            decomposition.append(breach([s[n] * (1 - max(s[c] for c in children)) for s in scores]))
        if siblings:
            exclusion.append(breach([s[n] * mean(s[a] for a in siblings) for s in scores]))
    check(losses.tree_rules, mean(composition) + mean(decomposition) + mean(exclusion), z, target, hierarchy)


def test_region_mutual_information():
    hierarchy = Hierarchy.from_config(CAMVID)
    torch.manual_seed(0)
    height, width, pool, radius = 10, 13, 2, 2
    z = torch.randn(2, 11, height, width, dtype=torch.float64)
    target = torch.randint(0, 11, (2, height, width))
    target[0, 3, 5] = IGNORE_INDEX
    target[1, 0, 0] = hierarchy.index_of("human")
    p = np.exp(z.numpy())
    p /= p.sum(axis=1, keepdims=True)
    expected = []
    for b in range(2):
        for c in range(11):
            ys, ps = [], []
            for top in range(0, height - pool * radius + 1, pool):
                for left in range(0, width - pool * radius + 1, pool):
                    box = np.s_[top : top + pool * radius, left : left + pool * radius]
                    labels = target[b].numpy()[box]
                    if ((labels >= 0) & (labels < 11)).all():
                        cells = (radius, pool, radius, pool)
                        ys.append((labels == c).astype(float).reshape(cells).mean(axis=(1, 3)).ravel())
                        ps.append(p[b, c][box].reshape(cells).mean(axis=(1, 3)).ravel())
            joint = np.cov(np.stack(ys, 1), np.stack(ps, 1), bias=True)
            d, unit = radius**2, 5e-4 * np.eye(radius**2)
            explained = joint[:d, d:] @ np.linalg.inv(joint[d:, d:] + unit) @ joint[d:, :d]
            gap = np.linalg.slogdet(joint[:d, :d] - explained + unit)[1] - np.linalg.slogdet(unit)[1]
            expected.append(gap / (2 * d))
    loss = losses.region_mutual_information
    check(loss, np.mean(expected), z, target, hierarchy, pool=pool, radius=radius)


def test_tree_triplet_of_three_pixels():
    """Of two poles and a car each pole has one triplet; the car is as far from both and has none."""
    hierarchy = Hierarchy.from_config(CAMVID)
    pole, car = hierarchy.index_of("pole"), hierarchy.index_of("car")
    vectors = torch.nn.functional.normalize(torch.randn(3, 8, dtype=torch.float64), dim=1)
    target = torch.tensor([[[pole, car, pole, IGNORE_INDEX]]])
    embedding = torch.cat([vectors, vectors[:1]]).T.reshape(1, 8, 1, 4)
    f = 1 - vectors @ vectors.T
    margin = 0.1 + 0.5 * (5 - 0) / (2 * 3)  # pole, structure, static, root, moving, car
    expected = mean(max(float(f[a, p] - f[a, 1]) + margin, 0) for a, p in ((0, 2), (2, 0)))
    check(losses.tree_triplet, expected, embedding, target, hierarchy, scale=0.5)


def test_tree_triplet_shrinks_the_target_and_knows_no_pair_of_parent_and_child():
    hierarchy = Hierarchy.from_config(CAMVID)
    labels = torch.tensor([[[hierarchy.index_of("structure"), hierarchy.index_of("pole")]]])
    embedding = torch.randn(1, 4, 1, 2)
    assert losses.tree_triplet(embedding, labels, hierarchy) == 0
    poles_and_cars = torch.tensor([[[2, 2, 8, 8]]])
    torch.manual_seed(0)
    small = losses.tree_triplet(embedding.repeat(1, 1, 1, 2), poles_and_cars, hierarchy)
    torch.manual_seed(0)
    big = poles_and_cars.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
    assert torch.equal(losses.tree_triplet(embedding.repeat(1, 1, 1, 2), big, hierarchy), small)


@few
@given(hierarchy=hierarchies(), seed=seeds)
def test_tied_logits_share_the_gradient(hierarchy, seed):
    """A gradient of tree-min, tied or not, pulls as hard in total as its terms do."""
    target = random_target(hierarchy, *SIZE, ignored=0, inner=False)
    z = torch.zeros(SIZE[0], len(hierarchy), *SIZE[1:], dtype=torch.float64, requires_grad=True)
    losses.tree_min(z, target, hierarchy).backward()
    positives = torch.tensor([len(path) for path in paths(hierarchy)])[target].sum().item()
    terms = target.numel() * len(hierarchy)
    assert z.grad.sum().item() == pytest.approx(0.5 * (terms - 2 * positives) / terms, abs=1e-12)


def test_a_group_far_below_the_others_keeps_its_digits():
    hierarchy = Hierarchy.from_config({"labels": list("abc"), "tree": {"x": ["a", "b"], "c": None}})
    z = torch.tensor([-300.0, -299.0, 300.0]).view(1, 3, 1, 1).requires_grad_()
    value = losses.marginal_cross_entropy(z, torch.zeros(1, 1, 1, dtype=torch.int64), hierarchy)
    value.backward()
    assert value.item() == pytest.approx((600 + (599 - math.log(1 + math.exp(-1)))) / 2, rel=1e-6)
    share = 1 / (1 + math.e)
    expected = [-(1 + share) / 2, -(1 - share) / 2, 1.0]
    np.testing.assert_allclose(z.grad.flatten().numpy(), expected, rtol=1e-5)
