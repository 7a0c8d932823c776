"""A data set whose masks hold sets of classes, from the check of the data to the metadata of an export."""

from __future__ import annotations

import json

import pytest
from torch import nn

from seghiero_core.checkpoint import read_checkpoint
from seghiero_core.config.loading import load_config
from seghiero_core.export.graph import DecodedModel
from seghiero_core.export.metadata import export_metadata, hierarchy_from_metadata
from seghiero_core.export.options import ExportOptions
from seghiero_core.training.loop import train
from support.tiny import TINY
from support.trees import hierarchies_agree

LABELS = "labels: {0: sky, 1: [grass, disc], 2: disc, 3: [ring, grass, sky]}"
WARNING = "the labels 'disc or grass', 'sky or grass or ring' stand for several classes. The losses here (dice)"


@pytest.fixture
def mixed(small):
    small.write_text(small.read_text().replace("labels: [sky, grass, disc, ring]", LABELS))
    return small


def test_from_data_to_metadata(mixed, run):
    code, out, err = run("data", "stats", mixed, "--json")
    labels = {entry["name"]: entry["share"] for entry in json.loads(out)["splits"]["train"]["labels"]}
    assert code == 0 and labels.keys() == {"sky", "disc or grass", "disc", "sky or grass or ring"}
    assert all(share == pytest.approx(0.25, abs=0.01) for share in labels.values())
    code, out, _ = run("data", "stats", mixed)
    assert code == 0 and "disc or grass" in out and "A or B: pixels that may be any of these" in out

    overrides = [word for override in (*TINY, "training.epochs=1") for word in ("--set", override)]
    code, _, err = run("train", mixed, *overrides)
    folder = mixed.parent / "runs" / "small"
    assert code == 0 and "stand for several classes" not in err
    code, out, _ = run("eval", folder, "--json")
    levels = json.loads(out)["levels"]
    assert code == 0
    assert [sum(entry["pixels"] for entry in level["classes"]) for level in levels] == [3054, 3054]

    hierarchy = load_config(mixed).hierarchy
    model = DecodedModel(nn.Identity(), hierarchy, "softmax", "leaf")
    metadata = export_metadata(model, len(hierarchy.leaves), read_checkpoint(folder / "best"), ExportOptions())
    assert hierarchies_agree(hierarchy_from_metadata(json.loads(json.dumps(metadata))), hierarchy)


def test_losses_that_know_no_sets_say_so_once(mixed):
    config = load_config(mixed, [*TINY, "training.epochs=1", "loss={terms: {dice: 1}}"])
    events = []
    train(config, notify=events.append)
    assert sum(event["event"] == "warning" and event["text"].startswith(WARNING) for event in events) == 1
