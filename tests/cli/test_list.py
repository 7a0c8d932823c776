"""`seghiero list-backbones` and `seghiero list-heads`."""

from __future__ import annotations

import json

from support.processes import seghiero


def test_list_backbones_names_variants_and_weights(tmp_path):
    entries = {entry["type"]: entry for entry in json.loads(seghiero("list-backbones", "--json", cwd=tmp_path).stdout)}
    assert sorted(entries) == ["convnext", "resnet", "segformer", "timm"]
    assert entries["timm"]["variants"] == []  # too many to list; see --timm
    assert sum(len(entry["variants"]) for entry in entries.values()) == 16
    assert all(entry["weights"][variant] for entry in entries.values() for variant in entry["variants"])


def test_list_heads(run):
    code, out, _ = run("list-heads", "--json")
    assert code == 0
    heads = {entry["type"]: entry["proj_dim"] for entry in json.loads(out)}
    assert heads == {
        "aspp": 256,
        "poincare": 256,
        "mask_query": 128,
        "segformer": 256,
        "ultrafast_segformer": 128,
        "extremely_fast_segformer": 64,
        "linear": 64,
    }
