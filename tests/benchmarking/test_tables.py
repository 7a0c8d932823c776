"""The generated tables of docs/architectures.md are those of the code, and parts of a page are replaced alone."""

from __future__ import annotations

import numpy as np
import pytest

from support.scripts import script


def test_the_tables_of_architectures_are_those_of_the_code():
    tables = script("architecture_tables")
    page = tables.PAGE.read_text()
    assert "| `resnet` | 50 | 256 | 512 | 1024 | 2048 | 23.5 |" in page  # as torchvision counts without its classifier
    assert tables.with_tables(page) == page, "run python benchmarks/architecture_tables.py"


def test_the_table_of_light_heads_is_that_of_its_runs():
    heads = script("light_heads")
    rows = heads.read_rows(heads.ROWS)
    for page in heads.PAGES:
        text = page.read_text()
        assert heads.with_part(text, "light heads", heads.table(rows)) == text, "run benchmarks/light_heads.py --write"


def test_light_heads_are_compared_with_the_full_one_seed_by_seed():
    """Means, sample deviations and differences as numpy has them; a seed without the full head isn't compared."""
    heads = script("light_heads")
    leaf = {"segformer": [40, 42, 47], "ultrafast_segformer": [39, 43, 41], "extremely_fast_segformer": [30, 36, 44]}
    rows = [
        {"head": head, "seed": seed, "decodings": {"leaf": {"leaf": value / 100, "level1": 0.5, "level2": 0.6}}}
        for head, values in leaf.items()
        for seed, value in enumerate(values)
    ]
    alone = {"head": "ultrafast_segformer", "seed": 9, "decodings": {"leaf": dict.fromkeys(heads.COLUMNS, 0.41)}}
    full, fast, fastest = (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in heads.table([*rows, alone]).splitlines()[2:]
    )
    assert full == [
        "`segformer`",
        "3",
        f"{np.mean([40, 42, 47]):.1f} ± {np.std([40, 42, 47], ddof=1):.1f}",
        "50.0 ± 0.0",
        "60.0 ± 0.0",
        "",
        "",
        "",
    ]
    assert fast[1:3] == ["4", f"41.0 ± {np.std([39, 43, 41, 41], ddof=1):.1f}"]
    assert fast[5:] == ["-2.0 (-1.0, +1.0, -6.0)", "at most 2 below", "reached"]
    assert fastest[5:] == ["-6.3 (-10.0, -6.0, -3.0)", "at most 5 below", "missed"]


def test_only_one_part_of_a_page_is_replaced():
    with_part = script("tables").with_part
    page = "# A\n\n<!-- x -->\n\nold\n\n<!-- end -->\n\ntext\n\n<!-- y -->\n<!-- end -->\n"
    changed = with_part(page, "x", "new | \\1")
    assert changed == page.replace("old", "new | \\1")
    assert with_part(changed, "y", "z") == changed.replace(
        "<!-- y -->\n<!-- end -->", "<!-- y -->\n\nz\n\n<!-- end -->"
    )
    with pytest.raises(ValueError, match="found 0"):
        with_part(page, "z", "new")


def test_every_part_of_the_benchmarks_page_is_there():
    tables = script("tables")
    page = (tables.DOCS / "benchmarks.md").read_text()
    for name in ("recommended", "ratios", "growth"):
        tables.with_part(page, name, "text")


def test_goals_of_times_and_of_memory():
    ratio = script("comparison").Ratio
    fast = ratio("net", "inference", "peer", ours=50, theirs=100, unit="ms", goal=1.5)
    small = ratio("net", "memory", "peer", ours=50, theirs=100, unit="MiB", goal=0.6)
    assert (fast.ratio, fast.reached, fast.goal_text) == (2, True, "at least 1.5x")
    assert (small.ratio, small.reached, small.goal_text) == (0.5, True, "at most 0.6x")
    assert not ratio("net", "inference", "peer", ours=100, theirs=100, unit="ms", goal=1.5).reached
    assert not ratio("net", "memory", "peer", ours=100, theirs=100, unit="MiB", goal=0.6).reached
    assert ratio("net", "inference", "peer", ours=100, theirs=100, unit="ms").reached


def test_the_better_variant_of_a_peer_counts():
    comparison = script("comparison")
    ratios = [
        comparison.Ratio("net", task, peer, 10, theirs, "ms")
        for task, peer, theirs in (
            ("inference", "smp (plain)", 20),
            ("inference", "smp (channels-last)", 12),
            ("inference", "other", 30),
            ("training", "smp (plain)", 11),
            ("training", "smp (channels-last)", 13),
        )
    ]
    assert [(each.task, each.peer) for each in comparison.best_peers(ratios)] == [
        ("inference", "smp (channels-last)"),
        ("inference", "other"),
        ("training", "smp (plain)"),
    ]
