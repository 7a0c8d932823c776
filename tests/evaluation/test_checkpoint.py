"""Evaluation of a checkpoint: what is read, and how often."""

from __future__ import annotations

import json
from collections import Counter

from seghiero_core import checkpoint
from seghiero_core.atomic import file_sha256


def test_eval_hashes_each_file_of_the_checkpoint_once(tiny_run, run, monkeypatch):
    hashed = Counter()

    def count(path):
        hashed[path.name] += 1
        return file_sha256(path)

    monkeypatch.setattr(checkpoint, "file_sha256", count)
    code, _, err = run("eval", tiny_run, "--device", "cpu", "--json")
    assert code == 0, err
    manifest = json.loads((tiny_run / "best" / "manifest.json").read_text())
    assert hashed == dict.fromkeys(manifest["sha256"], 1)
