"""Decoding against a search over every leaf, and its export."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seghiero_core.decode import SCORES, back_off, decode, level_scores
from seghiero_core.decode_modes import DEFAULT_DECODING, MODES
from seghiero_core.errors import UsageError
from seghiero_core.export.graph import no_exporter_output
from seghiero_core.hierarchy.tree import Hierarchy
from support.processes import ENVIRONMENT, ROOT, SUPPORT
from support.trees import CAMVID, classes_of_levels, hierarchies, paths
from support.work import work

few = settings(derandomize=True, max_examples=15, deadline=None)
seeds = st.integers(0, 2**16)


def softmax(z):
    return np.exp(z) / np.exp(z).sum()


def reference_scores(z, hierarchy, scores):
    """Per level, {node: score} of one pixel with logits z over nodes."""
    leaves = range(len(hierarchy.leaves))
    path, nodes_by_level = paths(hierarchy), classes_of_levels(hierarchy)
    if scores in ("levels", "sigmoid"):
        found = []
        for level in nodes_by_level:
            members = sorted({level[leaf] for leaf in leaves})
            values = softmax(z[members]) if scores == "levels" else 1 / (1 + np.exp(-z[members]))
            found.append(dict(zip(members, values, strict=True)))
        return found
    if scores == "softmax":
        p = softmax(z[: len(leaves)])
    else:
        parent = [p[-2] if len(p) > 1 else None for p in path]

        def share(node):
            siblings = [n for n in range(len(path)) if parent[n] == parent[node]]
            return softmax(z[siblings])[siblings.index(node)]

        p = [math.prod(share(node) for node in path[leaf]) for leaf in leaves]
    return [
        {name: sum(p[leaf] for leaf in leaves if level[leaf] == name) for name in {level[leaf] for leaf in leaves}}
        for level in nodes_by_level
    ]


def reference_decode(by_level, hierarchy, mode):
    """The node of every level, finest first."""
    leaves, nodes_by_level, path = range(len(hierarchy.leaves)), classes_of_levels(hierarchy), paths(hierarchy)
    if mode == "per_level":
        return [max(sorted(scores), key=scores.get) for scores in by_level]
    if mode == "top_down":
        under, chosen = list(leaves), []
        for scores, level in zip(reversed(by_level), reversed(nodes_by_level), strict=True):
            best = max(sorted({level[leaf] for leaf in under}), key=scores.get)
            under = [leaf for leaf in under if level[leaf] == best]
            chosen.insert(0, best)
        return chosen
    along = [[scores[level[leaf]] for scores, level in zip(by_level, nodes_by_level, strict=True)] for leaf in leaves]

    def cost(guess):
        def edges(leaf):
            common = len(set(path[guess]) & set(path[leaf]))
            return len(path[guess]) + len(path[leaf]) - 2 * common

        return sum(by_level[0][leaf] * edges(leaf) for leaf in leaves)

    value = {
        "leaf": lambda leaf: by_level[0][leaf],
        "best_path": lambda leaf: math.prod(along[leaf]),
        "best_path_sum": lambda leaf: sum(along[leaf]),
        "best_path_min": lambda leaf: min(along[leaf]),
        "expected_cost": lambda leaf: -cost(leaf),
    }[mode]
    best = max(leaves, key=value)
    return [level[best] for level in nodes_by_level]


@pytest.mark.parametrize("scores", SCORES)
@pytest.mark.parametrize("mode", MODES)
@few
@given(hierarchy=hierarchies(), seed=seeds)
def test_every_mode_against_a_search(scores, mode, hierarchy, seed):
    if (mode, scores) == ("expected_cost", "sigmoid"):
        return
    torch.manual_seed(seed)
    logits = torch.randn(2, len(hierarchy), 2, 3, dtype=torch.float64) * 2
    decoded = decode(logits, hierarchy, mode, scores=scores)
    for b in range(2):
        for y in range(2):
            for x in range(3):
                by_level = reference_scores(logits[b, :, y, x].numpy(), hierarchy, scores)
                expected = reference_decode(by_level, hierarchy, mode)
                got = [level.nodes[int(ids[b, y, x])] for level, ids in zip(hierarchy.levels, decoded.ids, strict=True)]
                confidence = [float(c[b, y, x]) for c in decoded.confidence]
                assert confidence == pytest.approx([s[n] for s, n in zip(by_level, got, strict=True)])
                ties = [s[n] for s, n in zip(by_level, expected, strict=True)]
                if mode == "best_path_min":  # several leaves may share the lowest score along their paths
                    assert min(confidence) == pytest.approx(min(ties))
                elif mode == "expected_cost":  # or, in a singleton chain, the least cost
                    assert got == expected or confidence[0] != pytest.approx(ties[0])
                else:
                    assert got == expected


def cut_tree(leaves, rng):
    """A ragged tree over many leaves in any order: some stand alone, one group is large, and there are chains."""
    names = [f"leaf{i}" for i in range(leaves)]
    rng.shuffle(names)
    tree, start = {"large": dict.fromkeys(names[:12])}, 12
    while start < leaves:
        size = int(rng.integers(1, 6))
        group = dict.fromkeys(names[start : start + size])
        chain = {f"below{start}": group} if rng.random() < 0.5 else group
        tree[names[start] if size == 1 else f"group{start}"] = None if size == 1 else chain
        start += size
    return Hierarchy.from_config({"labels": sorted(names), "tree": tree})


@pytest.mark.parametrize("classes", [0, 24, 10**6])  # sums along edges alone, mixed, and matrix products alone
@pytest.mark.parametrize("scores", ["softmax", "levels", "siblings"])
@settings(derandomize=True, max_examples=6, deadline=None)
@given(leaves=st.integers(20, 160), seed=seeds)
def test_sums_along_edges_equal_matrix_products(classes, scores, leaves, seed):
    hierarchy = cut_tree(leaves, np.random.default_rng(seed))
    logits = 3 * torch.randn(2, len(hierarchy), 4, 5, generator=torch.Generator().manual_seed(seed))
    layout = torch.channels_last if seed % 2 else torch.contiguous_format
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seghiero_core.decode.PRODUCT_CLASSES", classes)
        by_level = level_scores(logits.contiguous(memory_format=layout), hierarchy, scores)
        cheapest = decode(logits.contiguous(memory_format=layout), hierarchy, "expected_cost", scores=scores).ids[0]
        paths_multiplied = decode(logits, hierarchy, "best_path", scores=scores).ids[0]
    leaf = by_level[0].double().flatten(2)
    covers = torch.tensor(hierarchy.covers[:, :leaves]).double()
    if scores != "levels":
        for level, found in zip(hierarchy.levels, by_level, strict=True):
            torch.testing.assert_close(
                found.flatten(2), (covers[list(level.nodes)] @ leaf).float(), rtol=1e-5, atol=3e-7
            )
    cost = torch.tensor(hierarchy.distance[:leaves, :leaves]).double() @ leaf
    least = cost.gather(1, cheapest.flatten(1)[:, None])[:, 0]
    assert (least - cost.amin(dim=1)).abs().max() < 1e-5
    along = torch.stack(
        [s.double()[:, t] for s, t in zip(by_level, hierarchy.leaf_to_level.tolist(), strict=True)]
    ).prod(dim=0)
    best = along.gather(1, paths_multiplied[:, None])[:, 0]
    torch.testing.assert_close(best, along.amax(dim=1), rtol=1e-5, atol=0)


@pytest.mark.parametrize("scores", ["softmax", "siblings"])
@pytest.mark.parametrize("mode", ["best_path", "expected_cost"])
def test_the_work_grows_with_the_nodes_and_not_with_leaves_times_depth(mode, scores):
    """A binary tree, whose leaves lie far below: per pixel and node, it costs what a smaller one does."""

    def binary(names):
        if len(names) == 1:
            return None
        half = len(names) // 2
        pairs = names[:half], names[half:]
        return {part[0] if half == 1 else f"above {part[0]}, {half}": binary(part) for part in pairs}

    costs = []
    for leaves in (128, 1024):
        names = [f"leaf{i}" for i in range(leaves)]
        hierarchy = Hierarchy.from_config({"labels": names, "tree": binary(names), "ignore": 65535})
        per_size = []
        for side in (4, 8):
            logits = torch.randn(1, len(hierarchy), side, side)
            decode(logits, hierarchy, mode, scores=scores)
            per_size.append(work(lambda x=logits, h=hierarchy: decode(x, h, mode, scores=scores)))
        costs.append((per_size[1] - per_size[0]) / len(hierarchy))
    assert costs[1] < 1.1 * costs[0]


@few
@given(hierarchy=hierarchies(), seed=seeds, mode=st.sampled_from([mode for mode in MODES if mode != "per_level"]))
def test_levels_agree(hierarchy, seed, mode):
    torch.manual_seed(seed)
    decoded = decode(torch.randn(2, len(hierarchy.leaves), 3, 3), hierarchy, mode)
    above = torch.tensor(hierarchy.leaf_to_level.tolist())
    for level, ids in enumerate(decoded.ids):
        assert torch.equal(above[level][decoded.ids[0]], ids)


@few
@given(hierarchy=hierarchies(), seed=seeds, threshold=st.floats(0, 1))
def test_back_off_stops_at_the_deepest_node_that_passes(hierarchy, seed, threshold):
    torch.manual_seed(seed)
    logits = torch.randn(1, len(hierarchy.leaves), 4, 4) * 2
    full, backed = decode(logits, hierarchy), decode(logits, hierarchy, confidence=threshold)
    scores = torch.stack(full.confidence).flatten(1).T.tolist()
    whole, left = (torch.stack(d.ids).flatten(1).T.tolist() for d in (full, backed))
    for score, all_ids, ids in zip(scores, whole, left, strict=True):
        threshold32 = float(np.float32(threshold))
        deepest = next((level for level, s in enumerate(score) if s >= threshold32), len(score))
        assert ids == [-1] * deepest + all_ids[deepest:]


def test_top_down_finds_the_group_that_the_best_leaf_is_not_in():
    hierarchy = Hierarchy.from_config({"labels": list("abcd"), "tree": {"x": ["a", "b", "c"], "d": None}})
    logits = torch.tensor([0.25, 0.22, 0.2, 0.33]).log().view(1, 4, 1, 1)
    assert [int(i) for i in decode(logits, hierarchy, "leaf").ids] == [3, 1]
    assert [int(i) for i in decode(logits, hierarchy, "top_down", confidence=0.6).ids] == [-1, 0]
    assert back_off(decode(logits, hierarchy), 0.9).ids[1].item() == -1


def test_half_precision_and_channels():
    hierarchy = Hierarchy.from_config(CAMVID)
    logits = torch.randn(1, len(hierarchy.leaves), 5, 7).half()
    decoded = decode(logits, hierarchy)
    assert decoded.confidence[2].dtype == torch.float32 and decoded.ids[0].dtype == torch.int64
    assert decoded.ids[0].shape == (1, 5, 7)
    for scores in level_scores(logits, hierarchy):
        torch.testing.assert_close(scores.sum(dim=1), torch.ones(1, 5, 7))


@pytest.mark.parametrize(
    ("channels", "options", "message"),
    [
        (11, {"mode": "leef"}, "Did you mean 'leaf'"),
        (12, {}, "12 channels; expected 11 or 16, because the tree has 11 leaves and 16 nodes"),
        (11, {"scores": "sigmoid"}, "over all 16 nodes"),
        (16, {"scores": "sigmoids"}, "Did you mean 'sigmoid'"),
        (16, {"mode": "expected_cost", "scores": "sigmoid"}, "distribution over the leaves"),
    ],
)
def test_errors_say_what_is_wrong(channels, options, message):
    hierarchy = Hierarchy.from_config(CAMVID)
    with pytest.raises(UsageError, match=message):
        decode(torch.zeros(1, channels, 2, 2), hierarchy, **options)


class Decoder(torch.nn.Module):
    def __init__(self, hierarchy=None, **options):
        super().__init__()
        self.hierarchy, self.options = hierarchy or Hierarchy.from_config(CAMVID), options

    def forward(self, logits):
        decoded = decode(logits, self.hierarchy, **self.options)
        return *decoded.ids, *decoded.confidence


@pytest.mark.parametrize(("mode", "scores"), [("leaf", "softmax"), ("top_down", "siblings"), ("best_path", "sigmoid")])
def test_traces_for_any_size(mode, scores):
    """torch.export, on which ONNX export stands, takes every size from one trace."""
    decoder = Decoder(mode=mode, scores=scores, confidence=0.4)
    dims = {0: torch.export.Dim("b", max=64), 2: torch.export.Dim("h", max=4096), 3: torch.export.Dim("w", max=4096)}
    traced = torch.export.export(decoder, (torch.randn(2, 16, 8, 6),), dynamic_shapes=(dims,)).module()
    other = torch.randn(3, 16, 5, 9)
    for got, expected in zip(traced(other), decoder(other), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("mode", ["top_down", "best_path", "expected_cost"])
def test_a_tree_of_many_classes_as_onnx(mode):
    """Above `PRODUCT_CLASSES`; scattered sums would have no fixed order in onnxruntime."""
    hierarchy = cut_tree(200, np.random.default_rng(0))
    decoder = Decoder(hierarchy, mode=mode).eval()
    free = torch.export.Dim.DYNAMIC
    program = torch.export.export(decoder, (torch.randn(2, 200, 9, 13),), dynamic_shapes=({0: free, 2: free, 3: free},))
    with no_exporter_output():
        graph = torch.onnx.export(program, dynamo=True, opset_version=18, verbose=False).model_proto
    assert not {"ScatterND", "ScatterElements"} & {node.op_type for node in graph.graph.node}
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    logits = 3 * torch.randn(3, 200, 11, 7)
    found = session.run(None, {session.get_inputs()[0].name: logits.numpy()})
    for got, expected in zip(found, decoder(logits), strict=True):
        np.testing.assert_allclose(got, expected.numpy(), rtol=1e-5, atol=1e-6)


def test_one_line_sets_the_default_of_everything(small):
    """Training, eval, predict, export, `decode` and the help texts, with `decode_modes.DEFAULT_DECODING` changed."""
    words = [sys.executable, SUPPORT / "default_decoding.py", "expected_cost", small]
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert set(found["modes"]) == {"expected_cost"} and all(found["help"]) and found["predict"]
    assert found["eval"]["decode"] == "expected_cost"
    assert {key: found["eval"][key] for key in ("mean_miou", "pixels", "mean_tree_distance")} == {
        key: found["run"][key] for key in ("mean_miou", "pixels", "mean_tree_distance")
    }
    assert found["eval"]["mean_tree_distance"] != found["leaf"]["mean_tree_distance"]


def test_the_docs_name_the_default():
    text = (ROOT / "docs/api.md").read_text()
    assert re.findall(r'\| `"(\w+)"` \(default\) \| the best', text) == [DEFAULT_DECODING.mode]
    assert f"a decoding mode; by default `{DEFAULT_DECODING.mode}`, or what" in text
