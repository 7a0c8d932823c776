"""Metrics against torchmetrics and against counting pixel by pixel."""

from __future__ import annotations

import collections
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_jaccard_index,
)

from seghiero_core.decode import Decoded, back_off, decode, level_scores
from seghiero_core.hierarchy.tree import IGNORE_INDEX, Hierarchy
from seghiero_core.metrics.measures import risk_coverage_area
from seghiero_core.metrics.metrics import Metrics
from support.trees import CAMVID, classes_of_levels, hierarchies, paths, random_target

few = settings(derandomize=True, max_examples=15, deadline=None)
seeds = st.integers(0, 2**16)


def batch(hierarchy, seed, inner=True, size=(2, 8, 9)):
    torch.manual_seed(seed)
    logits = torch.randn(size[0], len(hierarchy), *size[1:]) * 2
    return logits, random_target(hierarchy, *size, inner=inner)


def counted(hierarchy, *batches, **options):
    metrics = Metrics(hierarchy, **options)
    for decoded, target in batches:
        metrics.update(decoded, target)
    return metrics


@few
@given(hierarchy=hierarchies(), seed=seeds)
def test_levels_against_torchmetrics(hierarchy, seed):
    logits, target = batch(hierarchy, seed)
    decoded = decode(logits, hierarchy, "per_level", scores="levels")
    halves = [(Decoded(*([x[i : i + 1] for x in part] for part in decoded)), target[i : i + 1]) for i in range(2)]
    result = counted(hierarchy, *halves).compute()
    for level, measures in enumerate(result["levels"]):
        classes = len(hierarchy.levels[level].nodes)
        truth = torch.tensor(hierarchy.node_to_level[level].tolist())[target].where(target >= 0, -1)
        options = {"num_classes": max(classes, 2), "ignore_index": -1}
        ids = decoded.ids[level]
        iou = multiclass_jaccard_index(ids, truth, average="none", **options)
        present = torch.zeros(max(classes, 2), dtype=torch.bool)
        present[torch.cat([ids[truth >= 0], truth[truth >= 0]]).unique()] = True
        for entry, expected, there in zip(measures["classes"], iou, present, strict=False):
            assert entry["iou"] == (pytest.approx(expected.item(), abs=1e-6) if there else None)
            assert entry["name"] in hierarchy.level_names(level)
        assert measures["miou"] == pytest.approx(iou[present].mean().item(), abs=1e-6)
        accuracy = multiclass_accuracy(ids, truth, average="micro", **options)
        assert measures["pixel_accuracy"] == pytest.approx(accuracy.item(), abs=1e-6)
        assert sum(entry["pixels"] for entry in measures["classes"]) == (truth >= 0).sum()
        if classes > 1:
            scores = level_scores(logits, hierarchy, "levels")[level]
            ece = multiclass_calibration_error(scores, truth, n_bins=15, norm="l1", **options)
            assert measures["ece"] == pytest.approx(ece.item(), abs=1e-5)
    json.dumps(result)


@few
@given(hierarchy=hierarchies(), seed=seeds, threshold=st.sampled_from([None, 0.4, 0.7]))
def test_paths_against_counting(hierarchy, seed, threshold):
    logits, target = batch(hierarchy, seed)
    decoded = decode(logits, hierarchy, "per_level", threshold, scores="levels")
    path, nodes_by_level = paths(hierarchy), classes_of_levels(hierarchy)
    valid = consistent = right = mistakes = distance = 0
    by_ancestor = collections.Counter()
    for y, *ids in zip(target.flatten().tolist(), *(i.flatten().tolist() for i in decoded.ids), strict=True):
        if y == IGNORE_INDEX:
            continue
        valid += 1
        guess = [level.nodes[i] if i >= 0 else None for level, i in zip(hierarchy.levels, ids, strict=True)]
        deepest = next((g for g in guess if g is not None), None)
        above = {hierarchy.levels[-1].nodes.index(path[deepest][0])} if deepest is not None else {-1}
        agree = all(
            finer is None or coarser == (nodes_by_level[level + 1][finer])
            for level, (finer, coarser) in enumerate(zip(guess, guess[1:], strict=False))
        )
        assert not agree or ids[-1] in above
        consistent += agree
        truth = [level[y] for level in nodes_by_level]
        right += all(t is None or t == g for t, g in zip(truth, guess, strict=True))
        judged = next((g for t, g in zip(truth, guess, strict=True) if t is not None and g is not None), None)
        road = [] if judged is None else path[judged]
        common = len(set(road) & set(path[y]))
        edges = len(road) + len(path[y]) - 2 * common
        if common < len(road):
            by_ancestor[common] += 1
        mistakes += edges > 0
        distance += edges
    result = counted(hierarchy, (decoded, target)).compute()
    assert result["pixels"] == valid
    assert result["consistency"] == pytest.approx(consistent / valid)
    assert result["full_path_accuracy"] == pytest.approx(right / valid)
    assert result["mean_tree_distance"] == pytest.approx(distance / valid)
    assert result["mean_tree_distance_of_mistakes"] == (pytest.approx(distance / mistakes) if mistakes else None)
    shares = [by_ancestor[depth] / by_ancestor.total() for depth in range(int(hierarchy.depths.max()))]
    assert result["mistakes_by_common_ancestor"] == pytest.approx(shares)


@few
@given(hierarchy=hierarchies(), seed=seeds)
def test_back_off_curve_is_what_the_thresholds_do(hierarchy, seed):
    logits, target = batch(hierarchy, seed)
    full = decode(logits, hierarchy, "top_down")
    curve = counted(hierarchy, (full, target)).back_off_curve()
    leaf = (target >= 0) & (target < len(hierarchy.leaves))
    truth = torch.tensor(hierarchy.node_to_level.tolist())[:, target[leaf]]
    for row in curve[::9]:
        ids = torch.stack([i[leaf] for i in back_off(full, row["threshold"]).ids])
        answered = (ids >= 0).sum(dim=0)
        covered = answered > 0
        stop = (len(ids) - answered).clamp(max=len(ids) - 1)[None]
        right = (ids.gather(0, stop) == truth.gather(0, stop))[0] & covered
        assert row["coverage"] == pytest.approx(covered.double().mean().item())
        if covered.any():
            assert row["specificity"] == pytest.approx((answered[covered] / len(ids)).double().mean().item())
            assert row["accuracy"] == pytest.approx(right[covered].double().mean().item())
        stops = [hierarchy.levels[level].nodes[i] for level, i in zip(stop[0], ids.gather(0, stop)[0], strict=True)]
        sizes = [sum(node in path for path in paths(hierarchy)[: len(hierarchy.leaves)]) for node in stops]
        gained = [1 - math.log(size) / math.log(len(hierarchy.leaves)) for size in sizes]
        assert row["information"] == pytest.approx(np.mean(gained * covered.numpy()), abs=1e-6)


def test_area_under_risk_and_coverage():
    rows = [(1.0, 0.7), (0.8, 0.8), (0.4, 1.0), (0.2, 1.0), (0.0, None)]
    rows = [{"information": coverage, "accuracy": accuracy} for coverage, accuracy in rows]
    assert risk_coverage_area(rows) == pytest.approx(0.2 * 0.25 + 0.4 * 0.1)
    assert risk_coverage_area([{"information": 1.0, "accuracy": 0.6}]) == pytest.approx(0.4)
    assert risk_coverage_area([{"information": None, "accuracy": None}]) is None


@few
@given(hierarchy=hierarchies(), seed=seeds)
def test_calibration_error_of_a_class_is_that_of_the_pixels_predicted_as_it(hierarchy, seed):
    logits, target = batch(hierarchy, seed)
    decoded = decode(logits, hierarchy, "top_down", 0.5)
    result = counted(hierarchy, (decoded, target)).compute()
    for number, level in enumerate(result["levels"]):
        truth = torch.tensor(hierarchy.node_to_level[number].tolist())[target].where(target >= 0, -1)
        for index, entry in enumerate(level["classes"]):
            pixels = (truth >= 0) & (decoded.ids[number] == index)
            score, hit = decoded.confidence[number][pixels], (truth == index)[pixels]
            bins = (score * 15).ceil().long() - 1
            error = sum(abs(hit[bins == b].double().sum() - score[bins == b].double().sum()) for b in range(15))
            assert entry["ece"] == (pytest.approx(error.item() / len(score), abs=1e-5) if len(score) else None)


def test_counts_add_up_over_processes_and_copy():
    hierarchy = Hierarchy.from_config(CAMVID)
    parts = [(decode(logits, hierarchy), target) for logits, target in (batch(hierarchy, seed) for seed in range(3))]
    whole, last = counted(hierarchy, *parts), counted(hierarchy, parts[2])
    reduced = Metrics(hierarchy)
    reduced.load_state(counted(hierarchy, *parts[:2]).state() + last.state())
    assert torch.equal(reduced.counts, whole.counts) and reduced.compute() == whole.compute()
    kept = whole.state()
    whole.update(*parts[0])
    assert not torch.equal(kept, whole.state())
    with pytest.raises(ValueError, match="counts for this tree"):
        reduced.load_state(torch.zeros(3))


def test_right_beyond_what_float32_can_count():
    hierarchy = Hierarchy.from_config({"labels": ["a", "b"]})
    metrics = counted(
        hierarchy, (decode(torch.tensor([9.0, 0]).view(1, 2, 1, 1), hierarchy), torch.zeros(1, 1, 1).long())
    )
    metrics.load_state(metrics.state() * (2**40))
    metrics.update(decode(torch.tensor([0, 9.0]).view(1, 2, 1, 1), hierarchy), torch.zeros(1, 1, 1).long())
    level = metrics.compute()["levels"][0]
    first = level["classes"][0]
    assert first["iou"] == first["boundary_iou"] == 2**40 / (2**40 + 1) and first["pixels"] == 2**40 + 1
    assert level["ece"] == pytest.approx(1 - torch.tensor([9.0, 0]).softmax(0)[0].item(), abs=1e-5)


def test_absent_classes_background_and_confusions():
    hierarchy = Hierarchy.from_config(
        {"labels": ["sky", "car", "bus", "dog"], "tree": {"sky": None, "x": ["car", "bus", "dog"]}}
    )
    truth = torch.tensor([[[0, 0, 1, 1, 1, 2, 2, IGNORE_INDEX, hierarchy.index_of("x")]]])
    guess = torch.tensor([[[0, 1, 1, 2, 2, 2, 1, 3, 0]]])
    logits = torch.nn.functional.one_hot(guess, 4).movedim(3, 1).float() * 9
    metrics = counted(hierarchy, (decode(logits, hierarchy), truth), background="sky")
    leaf, coarse = metrics.compute()["levels"]
    assert [entry["iou"] for entry in leaf["classes"]] == [1 / 2, 1 / 5, 1 / 4, None]
    assert leaf["miou"] == pytest.approx((1 / 2 + 1 / 5 + 1 / 4) / 3)
    assert leaf["miou_without_background"] == pytest.approx((1 / 5 + 1 / 4) / 2)
    assert leaf["pixel_accuracy"] == pytest.approx(3 / 7)
    assert [entry["pixels"] for entry in coarse["classes"]] == [2, 6]
    worst = metrics.worst_confusions(0, top=2)
    assert worst[0] == {"truth": "car", "predicted": "bus", "pixels": 2, "share": 2 / 3}
    assert worst[1] == {"truth": "sky", "predicted": "car", "pixels": 1, "share": 1 / 2}


@pytest.mark.parametrize(
    ("background", "kept"),
    [("floor", [[1, 2, 3], [1, 2], [1]]), ("wall", [[0, 2, 3], [0, 2], [0, 1]]), ("pets", [[0, 1], [0, 1], [0, 1]])],
)
def test_the_background_is_left_out_at_every_level(background, kept):
    tree = {"ground": {"flat": ["floor"]}, "things": {"wall": None, "pets": ["cat", "dog"]}}
    hierarchy = Hierarchy.from_config({"labels": ["floor", "wall", "cat", "dog"], "tree": tree})
    logits, target = batch(hierarchy, 0, inner=False)
    metrics = counted(hierarchy, (decode(logits, hierarchy), target), background=background)
    for level, positions in zip(metrics.compute()["levels"], kept, strict=True):
        ious = [level["classes"][position]["iou"] for position in positions]
        assert level["miou_without_background"] == pytest.approx(np.mean(ious))


def test_nothing_counted_gives_no_numbers():
    hierarchy = Hierarchy.from_config(CAMVID)
    metrics = Metrics(hierarchy)
    logits, target = batch(hierarchy, 0)
    metrics.update(decode(logits, hierarchy), torch.full_like(target, IGNORE_INDEX))
    result = metrics.compute()
    assert result["levels"][0]["miou"] is None and result["consistency"] is None
    assert metrics.worst_confusions() == [] and metrics.back_off_curve()[0]["coverage"] is None


@few
@given(hierarchy=hierarchies(sets=True), seed=seeds)
def test_a_set_counts_where_its_leaves_share_a_class(hierarchy, seed):
    torch.manual_seed(seed)
    logits, target = torch.randn(2, len(hierarchy.leaves), 8, 9), random_target(hierarchy, 2, 8, 9)
    decoded = decode(logits, hierarchy)
    result = counted(hierarchy, (decoded, target)).compute()
    classes = np.pad(hierarchy.label_to_level, ((0, 0), (0, 1)), constant_values=-1)[:, target.numpy()]
    for level, found, ids in zip(result["levels"], classes, decoded.ids, strict=True):
        for position, entry in enumerate(level["classes"]):
            assert entry["pixels"] == (found == position).sum()
        right = (found == ids.numpy())[found >= 0]
        assert level["pixel_accuracy"] == (pytest.approx(right.mean()) if right.size else None)
    assert result["pixels"] == (classes >= 0).any(axis=0).sum()
