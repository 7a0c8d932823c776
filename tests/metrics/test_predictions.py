"""Metrics of label maps instead of decoded logits, against decoding and against counting; and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seghiero_core.decode import Decoded, decode
from seghiero_core.hierarchy.tree import IGNORE_INDEX, Hierarchy
from seghiero_core.metrics.metrics import Metrics
from support.trees import CAMVID, classes_of_levels, hierarchies, random_target

few = settings(derandomize=True, max_examples=15, deadline=None)
seeds = st.integers(0, 2**16)


def measured(hierarchy, prediction, target, **options) -> dict:
    metrics = Metrics(hierarchy)
    metrics.update(prediction, target, **options)
    return metrics.compute()


def without_ece(measures: dict) -> dict:
    levels = [
        {**level, "ece": None, "classes": [{**entry, "ece": None} for entry in level["classes"]]}
        for level in measures["levels"]
    ]
    return {**measures, "levels": levels}


@few
@given(hierarchy=hierarchies(), seed=seeds)
def test_a_map_of_leaves_against_counting(hierarchy, seed):
    torch.manual_seed(seed)
    target = random_target(hierarchy, 2, 6, 7)
    leaf = torch.randint(-1, len(hierarchy.leaves), target.shape)  # -1: no class
    nodes_by_level = classes_of_levels(hierarchy)
    result = measured(hierarchy, leaf, target)
    for level, measures in zip(nodes_by_level, result["levels"], strict=True):
        hits, unions = {}, {}
        for truth, guess in zip(target.flatten().tolist(), leaf.flatten().tolist(), strict=True):
            true_node = None if truth == IGNORE_INDEX else level[truth]
            if true_node is None:
                continue
            node = level[guess] if guess >= 0 else None
            hits[true_node] = hits.get(true_node, 0) + (true_node == node)
            for each in {true_node, node} - {None}:
                unions[each] = unions.get(each, 0) + 1
        for entry in measures["classes"]:
            node = hierarchy.index_of(entry["name"])
            expected = hits.get(node, 0) / unions[node] if node in unions else None
            assert entry["iou"] == (None if expected is None else pytest.approx(expected))
        assert measures["ece"] is None


@few
@given(hierarchy=hierarchies(), seed=seeds, mode=st.sampled_from(["leaf", "per_level"]))
def test_maps_in_every_form_equal_the_decoded_ones(hierarchy, seed, mode):
    torch.manual_seed(seed)
    target = random_target(hierarchy, 2, 6, 7)
    decoded = decode(torch.randn(2, len(hierarchy.leaves), 6, 7), hierarchy, mode)
    expected = without_ece(measured(hierarchy, decoded, target))
    names = [level.name for level in hierarchy.levels]
    small = [level_ids.to(torch.uint8) for level_ids in decoded.ids]
    arrays = [level_ids.numpy() for level_ids in small]
    shuffled = dict(reversed(list(zip(names, arrays, strict=True))))
    forms = [decoded.ids, list(small), arrays, shuffled]
    forms += [decoded.ids[0], arrays[0]] if mode == "leaf" else []
    for form in forms:
        result = measured(hierarchy, form, target)
        assert [level["ece"] for level in result["levels"]] == [None] * len(names)
        assert without_ece(result) == expected
    assert without_ece(measured(hierarchy, arrays, target.numpy())) == expected


def test_one_image_without_a_batch_dimension():
    hierarchy = Hierarchy.from_config(CAMVID)
    leaf, target = torch.tensor([[0, 1, 2]]), torch.tensor([[0, 1, 3]])
    assert measured(hierarchy, leaf, target) == measured(hierarchy, leaf[None], target[None])


def test_maps_have_no_curve_and_no_threshold_and_leave_the_calibration_alone():
    hierarchy = Hierarchy.from_config(CAMVID)
    torch.manual_seed(0)
    target = random_target(hierarchy, 1, 8, 8)
    decoded = decode(torch.randn(1, 11, 8, 8), hierarchy)
    metrics = Metrics(hierarchy)
    metrics.update(decoded.ids[0], target)
    assert metrics.back_off_curve()[0]["coverage"] is None
    metrics.update(decoded, target)
    expected = [level["ece"] for level in measured(hierarchy, decoded, target)["levels"]]
    assert [level["ece"] for level in metrics.compute()["levels"]] == expected
    before = metrics.state()
    with pytest.raises(ValueError, match="a threshold needs a prediction with confidences"):
        metrics.update(decoded.ids[0], target, confidence=0.5)
    assert torch.equal(metrics.counts, before)


def test_another_ignore_index_with_small_masks():
    hierarchy = Hierarchy.from_config({"labels": ["a", "b"]})
    target = torch.tensor([[[0, 1, 255]]], dtype=torch.uint8)
    result = measured(hierarchy, torch.tensor([[[0, 0, 1]]]), target, ignore_index=255)
    assert result["pixels"] == 2 and result["full_path_accuracy"] == 1 / 2
    with pytest.raises(ValueError, match=r"neither a label \(0 to 1\) nor the ignore index -1: 255"):
        measured(hierarchy, torch.tensor([[[0, 0, 1]]]), target)


LEAF = torch.zeros(1, 2, 3, dtype=torch.int64)
MAPS = [LEAF, LEAF, LEAF]


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        (LEAF, torch.zeros(1, 4, 6).long(), r"map of leaf has the shape \(1, 2, 3\), and the target has \(1, 4, 6\)"),
        (LEAF, LEAF[0], r"map of leaf has the shape \(1, 2, 3\), and the target has \(2, 3\)"),
        ([LEAF, LEAF[:, :1], LEAF], LEAF, r"map of level1 has the shape \(1, 1, 3\)"),
        (decode(torch.zeros(1, 11, 4, 6), Hierarchy.from_config(CAMVID)), LEAF, r"\(1, 4, 6\), and the target has"),
        (LEAF, LEAF + 16, r"the target has values that are neither a label \(0 to 15\) nor .* -1: 16\."),
        (LEAF, LEAF - 2, r"nor the ignore index -1: -2\."),
        (LEAF, LEAF.float(), "the target has the type torch.float32; expected integers"),
        (LEAF + 11, LEAF, r"map of leaf has values that are neither a class \(0 to 10\) nor -1 \(no class\): 11"),
        (LEAF - 2, LEAF, "nor -1 .*: -2"),
        ([LEAF, LEAF + 6, LEAF], LEAF, r"map of level1 has values that are neither a class \(0 to 5\)"),
        (Decoded((LEAF, LEAF, LEAF + 2), (LEAF.float(),) * 3), LEAF, r"map of level2 .* \(0 to 1\)"),
        (torch.zeros(1, 11, 2, 3), LEAF, "expected integers. `seghiero_core.decode.decode` makes class maps"),
        (MAPS[:2], LEAF, "one map for each of the 3 levels, found 2"),
        ([LEAF], LEAF, "one map for each of the 3 levels, found 1"),
        ({"leaf": LEAF, "level1": LEAF}, LEAF, "maps of the levels leaf, level1, level2; found leaf, level1"),
    ],
)
def test_what_does_not_fit_is_named(prediction, target, message):
    metrics = Metrics(Hierarchy.from_config(CAMVID))
    with pytest.raises(ValueError, match=message):
        metrics.update(prediction, target)
    assert not metrics.counts.any()


def test_an_ignored_pixel_may_have_any_prediction():
    hierarchy = Hierarchy.from_config(CAMVID)
    result = measured(hierarchy, np.array([[0, 255]]), np.array([[0, IGNORE_INDEX]]))
    assert result["pixels"] == 1


def test_an_unknown_background_is_refused():
    with pytest.raises(ValueError, match="unknown background class 'skye'. Did you mean 'sky'"):
        Metrics(Hierarchy.from_config(CAMVID), background="skye")
