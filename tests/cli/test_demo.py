"""`seghiero demo` does what the commands it prints do, and leaves results worth looking at, in the time it promises."""

from __future__ import annotations

import json
import re
import resource

import numpy as np
import pytest
from PIL import Image

from seghiero_core.data import synthetic
from seghiero_core.scaffold import starter
from support.processes import seghiero


def test_demo_runs_the_commands_that_it_prints(run, tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "IMAGES_PER_SPLIT", {"train": 8, "val": 2})
    monkeypatch.setitem(starter.STARTER_VALUES, "epochs", "1")
    monkeypatch.chdir(tmp_path)
    code, out, err = run("demo", "here")
    assert code == 0, err
    commands = re.findall(r"^\$ seghiero (.+)$", out, flags=re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["init", "train", "eval", "predict"]
    measured = json.loads((tmp_path / "here" / "runs" / "demo" / "eval" / "val.json").read_text())
    assert measured["images"] == 2
    masks = sorted((tmp_path / "here" / "predictions").glob("*.leaf.png"))
    written = [np.array(Image.open(mask)) for mask in masks]
    assert [mask.shape for mask in written] == 2 * [(synthetic.HEIGHT, synthetic.WIDTH)]
    # Typed by hand, a command does the same: another prediction into another folder has the same masks.
    words = commands[-1].replace("here/predictions", "again").split()
    assert run(*words)[0] == 0
    again = [np.array(Image.open(tmp_path / "again" / mask.name)) for mask in masks]
    assert all((one == other).all() for one, other in zip(written, again, strict=True))
    assert run("demo", "here")[0] == 2  # nothing is overwritten


@pytest.mark.slow
def test_demo_learns_its_images_in_90_seconds_on_two_cores(tmp_path):
    """Two cores do 1.7 s of work per second; other programs on the machine change the wall-clock time only."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = seghiero("demo", tmp_path / "demo")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    measured = json.loads((tmp_path / "demo" / "runs" / "demo" / "eval" / "val.json").read_text())
    assert measured["levels"][0]["miou"] >= 0.7
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime <= 1.7 * 90
