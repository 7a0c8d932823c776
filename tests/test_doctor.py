"""What `doctor` finds about a machine and a config."""

from __future__ import annotations

import json

import torch


def test_doctor_finds_this_machine_fit_and_names_what_is_not(small, run):
    code, out, err = run("doctor", small, "--json")
    findings = {finding["name"]: finding for finding in json.loads(out)}
    assert findings["torch"]["found"] == torch.__version__.partition("+")[0]
    assert "images/s of 48x64 px" in findings["loader"]["found"]
    assert code == (5 if any(finding["advice"] for finding in findings.values()) else 0), err
    (small.parent / "train/masks/1.png").unlink()
    code, out, err = run("doctor", small)
    assert code == 5
    assert "FIX  loader" in out
    assert "loader" in err
    assert not (small.parent / "runs").exists()
