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
from seghiero_core.losses import triplet
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
    leaves, path = range(len(hierarchy.leaves)), paths(hierarchy)
    marginal, level_wise = [], []
    weights = [2.0, *[1.0] * (len(hierarchy.levels) - 1)]
    for of_label in classes_of_levels(hierarchy):
        members = sorted({of_label[leaf] for leaf in leaves})
        sum_losses, level_losses = [], []
        for v, y in pixels(z, target):
            p = softmax(v[: len(leaves)])
            name = of_label[y]
            below = [leaf for leaf in leaves if (y in path[leaf] if name is None else of_label[leaf] == name)]
            sum_losses.append(-math.log(sum(p[leaf] for leaf in below)))
            if name is not None:
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
    plain, coherent, weights = [], [], []  # the probability given to what each known node is; what the label weighs
    class_weight, of_label = random_weights(hierarchy)
    for v, y in pixels(z, target):
        s = [1 / (1 + math.exp(-value)) for value in v]
        for node in range(len(path)):
            if node in path[y]:
                plain.append(s[node])
                coherent.append(min(s[above] for above in path[node]))
            elif y not in path[node]:
                plain.append(1 - s[node])
                coherent.append(1 - max(s[under] for under in range(len(path)) if node in path[under]))
        weights += [of_label[y]] * (len(plain) - len(weights))
    check(losses.node_bce, mean(-math.log(p) for p in plain), z, target, hierarchy)
    check(losses.tree_min, mean(-math.log(p) for p in coherent), z, target, hierarchy)
    expected = mean(-math.log(p) * (1 - p) ** 2 for p in coherent)
    check(losses.focal_tree_min, expected, z, target, hierarchy)
    if weights:
        expected = float(np.average(-np.log(plain), weights=weights))
        check(losses.node_bce, expected, z, target, hierarchy, class_weight=class_weight)
        expected = float(np.average(-np.log(coherent), weights=weights))
        check(losses.tree_min, expected, z, target, hierarchy, class_weight=class_weight)
        expected = float(np.average(-np.log(coherent) * (1 - np.array(coherent)) ** 2, weights=weights))
        check(losses.focal_tree_min, expected, z, target, hierarchy, class_weight=class_weight)


def random_weights(hierarchy):
    """Weights of the leaves as a tensor, and those of all labels: of an inner node the mean of its leaves."""
    weight = torch.rand(len(hierarchy.leaves), dtype=torch.float64) + 0.1
    path = paths(hierarchy)
    return weight, [mean(weight[i].item() for i in range(len(weight)) if node in path[i]) for node in range(len(path))]


@few
@given(hierarchy=hierarchies(), seed=seeds)
def test_dice_and_lovasz(hierarchy, seed):
    num_leaves = len(hierarchy.leaves)
    z, target = draw(hierarchy, num_leaves, seed)
    if seed % 3 == 0:  # nothing to learn from in one image
        target[1] = target[1].where(target[1] >= num_leaves, IGNORE_INDEX)
    of_images = [dice_and_lovasz(z[i : i + 1], target[i : i + 1], num_leaves) for i in range(len(target))]
    of_images = [values for values in of_images if values]
    check(losses.dice, mean(dice for dice, _ in of_images), z, target, hierarchy)
    check(losses.lovasz, mean(lovasz for _, lovasz in of_images), z, target, hierarchy)


def dice_and_lovasz(z, target, num_leaves):
    """Both losses of one image; None where it has no pixel labeled with a leaf."""
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
    return (mean(of_dice), mean(of_lovasz)) if counted else None


@few
@given(hierarchy=hierarchies(), seed=seeds)
def test_tree_rules(hierarchy, seed):
    z, target = draw(hierarchy, len(hierarchy), seed)
    if seed % 3 == 0:
        target[1] = IGNORE_INDEX
    class_weight, of_label = random_weights(hierarchy)
    for options, weights in (({}, [1.0] * len(of_label)), ({"class_weight": class_weight}, of_label)):
        for q in (1.0, 5.0):
            of_images = [rules_of_image(z[i : i + 1], target[i : i + 1], hierarchy, weights, q) for i in range(2)]
            expected = mean(value for value in of_images if value is not None)
            check(losses.tree_rules, expected, z, target, hierarchy, q=q, **options)


def rules_of_image(z, target, hierarchy, weights, q):
    """The loss of one image, None where all is ignored; `weights` are those of the labels."""
    nodes = range(len(hierarchy))
    parent = [p[-2] if len(p) > 1 else None for p in paths(hierarchy)]
    scores = [[1 / (1 + math.exp(-value)) for value in v] for v, _ in pixels(z, target)]
    weight = [weights[y] for _, y in pixels(z, target)]
    if not scores:
        return None

    def breach(degrees):
        return float(np.average(np.array(degrees) ** q, weights=weight)) ** (1 / q)

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
    return mean(composition) + mean(decomposition) + mean(exclusion)


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
    # The mean over images: two cars and a pole have triplets too, two cars have none, and ignored pixels don't count.
    targets = torch.tensor([[pole, car, pole, -1], [car, car, pole, -1], [car, -1, car, -1], [-1, -1, -1, -1]])[:, None]
    other = mean(max(float(f[a, p] - f[a, 2]) + margin, 0) for a, p in ((0, 1), (1, 0)))
    embedding = embedding.repeat(4, 1, 1, 1)
    check(losses.tree_triplet, (expected + other + 0) / 3, embedding, targets, hierarchy, scale=0.5)


def test_tree_triplet_draws_rare_labels_as_often_as_frequent_ones():
    """Of 8 anchors among 1000 pixels, one is nearly always the only pixel of the other label."""
    hierarchy = Hierarchy.from_config({"labels": list("ab")})
    torch.manual_seed(0)
    target = torch.zeros(50, 1, 1000, dtype=torch.int64)
    target.scatter_(2, torch.randint(0, 1000, (50, 1, 1)), 1)
    value = losses.tree_triplet(torch.ones(50, 1, 1, 1000), target, hierarchy, margin=0.0, samples=8)
    assert value > 0.9 * 1 / 2  # each triplet costs d(a, n) / 2 = 1


def test_tree_triplet_draws_at_random():
    """Every stream is uniform and unlike the others, and every allowed column is as likely."""
    torch.manual_seed(0)
    label = torch.randint(0, 3, (300, 40))
    random = triplet._random(label)
    assert torch.equal(random, triplet._random(2 - label)) and random.min() >= 0 and random.max() < 2**32
    share = (random / 2**32).double().numpy()
    ecdf = np.linspace(0, 1, share.size)
    assert np.abs(np.sort(share.ravel()) - ecdf).max() < 1.63 / share.size**0.5  # Kolmogorov-Smirnov, p = 0.01
    assert np.abs(np.corrcoef(share.reshape(3, -1))[np.triu_indices(3, 1)]).max() < 0.03
    assert len(np.unique(random)) > 0.99 * random.numel()
    allowed = torch.rand(1, 1, 12).expand(1, 6000, 12) < 0.4
    picked = triplet._pick(allowed, triplet._random(torch.randint(0, 3, (1, 6000)))[0])
    found = picked.flatten().bincount(minlength=12)
    assert torch.equal(found > 0, allowed[0, 0])
    expected = 6000 / int(allowed[0, 0].sum())
    assert (found[allowed[0, 0]] - expected).abs().max() < 4 * expected**0.5


def test_tree_triplet_shrinks_the_target_and_knows_no_pair_of_parent_and_child():
    hierarchy = Hierarchy.from_config(CAMVID)
    labels = torch.tensor([[[hierarchy.index_of("structure"), hierarchy.index_of("pole")]]])
    embedding = torch.randn(1, 4, 1, 2)
    assert losses.tree_triplet(embedding, labels, hierarchy) == 0
    poles_and_cars = torch.tensor([[[2, 2, 8, 8]]])
    small = losses.tree_triplet(embedding.repeat(1, 1, 1, 2), poles_and_cars, hierarchy)
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
