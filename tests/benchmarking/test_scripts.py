"""The scripts of benchmarks/ run to their end on the CPU, with little work."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from support.processes import ENVIRONMENT, ROOT

pytestmark = pytest.mark.slow


def script(name, *words):
    command = [sys.executable, "-W", "ignore", ROOT / "benchmarks" / name, *map(str, words)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)


def test_gpu_measures_ours_and_the_peers(tmp_path):
    words = ["--device", "cpu", "--size", 64, "--batch", 2, "--rounds", 1, "--only", "MiT-B0"]
    done = script("gpu.py", *words, "--json", tmp_path / "gpu.json")
    document = json.loads((tmp_path / "gpu.json").read_text())
    rows = {row["network"]: row for row in document["rows"]}
    assert list(rows) == ["seghiero", "transformers", "smp"]
    for row in rows.values():
        assert min(row["training images/s"], row["inference images/s"], row["gb"], row["TFLOPS"]) > 0
    mine = rows["seghiero"]
    assert mine["times the guide's speed"] == pytest.approx(mine["training images/s"] / 15)
    goals = mine["times the guide's speed"] >= 10 and mine["of the guide's memory"] <= 0.75
    assert done.returncode == (0 if goals else 1), done.stderr
    late = script("gpu.py", *words, "--minutes", 0)
    assert late.returncode == 1 and "not measured" in late.stdout


def test_check_ends_with_1_where_a_goal_is_missed():
    done = script("check.py", "--only", "heads", "--threads", 1, "--rounds", 1)
    lines = done.stdout.splitlines()
    assert len(lines) == 5 and lines[0].startswith("network")
    assert done.returncode == (1 if any(line.endswith("missed") for line in lines) else 0)
    assert script("check.py", "--only", "nothing").returncode == 2


def test_growth_writes_points_exponents_and_a_plot(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- growth -->\n<!-- end -->\n")
    files = ["--json", tmp_path / "growth.json", "--plot", tmp_path / "growth.png", "--page", page]
    done = script("growth.py", "--quick", "--rounds", 1, "--axis", "size", "--only", "tree_min", *files)
    document = json.loads((tmp_path / "growth.json").read_text())
    assert {point["part"] for point in document["points"]} == {"loss tree_min", "loss focal_tree_min"}
    assert all(point["ms"] > 0 and point["mib"] > 0 for point in document["points"])
    assert done.returncode == (1 if "above the limit" in done.stdout else 0), done.stderr
    assert (tmp_path / "growth.png").stat().st_size > 1000 and "| loss tree_min |" in page.read_text()
