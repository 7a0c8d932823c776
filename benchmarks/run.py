"""Measure what docs/benchmarks.md claims, and write its tables.

    pip install '.[bench]' && python benchmarks/run.py [--threads 2] [--rounds 9] [--only TEXT]

Runs the quick comparisons with other libraries (see check.py), `seghiero bench` on the recommended combinations, and
with --growth also growth.py with its plot. --only runs the parts whose names contain a text and leaves the others on
the page as they are.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import check
import torch
from tables import DOCS, conditions, markdown, with_part

from seghiero_core.benchmarking.combination import Effort
from seghiero_core.benchmarking.processes import measure_all
from seghiero_core.config.loading import parse_config

PAGE = DOCS / "benchmarks.md"
RECOMMENDED = {
    "maximum accuracy": ({"type": "segformer", "variant": "mit-b5"}, {"type": "segformer", "proj_dim": 256}),
    "balanced": ({"type": "resnet", "depth": 101}, {"type": "aspp"}),
    "maximum speed": (
        {"type": "segformer", "variant": "mit-b0"},
        {"type": "extremely_fast_segformer", "proj_dim": 64},
    ),
    "a GPU with less than 8 GB": ({"type": "resnet", "depth": 50}, {"type": "aspp"}),
}
"""The recommended combinations of docs/architectures.md."""


def ratios(threads: int, rounds: int) -> str:
    """Compare with other libraries."""
    torch.set_num_threads(threads)
    rows = []
    for ratio in check.measure(rounds):
        rows.append(check.cells(ratio))
        print(*rows[-1], sep=", ", flush=True)
    clock = "the processor's time" if threads == 1 else "wall-clock time"
    return f"{conditions(threads, clock)}\n\n{markdown(check.COLUMNS, rows)}"


def recommended(threads: int) -> str:
    """Measure the recommended combinations."""
    configs = []
    for backbone, head in RECOMMENDED.values():
        document = {
            "dataset": {},
            "classes": {"preset": "cityscapes"},
            "backbone": backbone,
            "head": head,
            "transform": {"size": [256, 256]},
            "training": {"batch_size": 2, "device": "cpu", "precision": "fp32"},
        }
        configs.append(parse_config(document, Path("bench.yaml"), required=()))
    rows = []
    for goal, row in zip(RECOMMENDED, measure_all(configs, Effort(threads=threads)), strict=True):
        print(goal, row, flush=True)
        if "error" in row:
            raise SystemExit(f"{goal}: {row['error']}")
        training, prediction, single = row["training"], row["prediction"], row["single_image"]
        rows.append(
            (
                goal,
                f"{row['backbone']} + {row['head']}",
                f"{row['parameters'] / 1e6:.1f}",
                f"{row['flops'] / 1e9:.1f}",
                f"{training['images_per_second']:.2f}",
                f"{training['peak_mib']:.0f}",
                f"{prediction['images_per_second']:.2f}",
                f"{prediction['peak_mib']:.0f}",
                f"{single['p50_ms']:.0f}",
                f"{single['p95_ms']:.0f}",
            )
        )
    columns = ("goal", "combination", "M parameters", "GFLOPs", "training, images/s", "MiB")
    columns += ("prediction, images/s", "MiB", "p50, ms", "p95, ms")
    return f"{conditions(threads, 'wall-clock time')}\n\n{markdown(columns, rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--growth", action="store_true", help="also growth.py, with one thread")
    parser.add_argument("--only", default="", metavar="TEXT", help="of these: ratios, recommended, growth")
    options = parser.parse_args()
    parts = {
        "ratios": lambda: ratios(options.threads, options.rounds),
        "recommended": lambda: recommended(options.threads),
    }
    for name, write in parts.items():
        if options.only in name:
            text = write()
            PAGE.write_text(with_part(PAGE.read_text(), name, text))  # others may have changed in the meantime
    if options.growth:
        script = Path(__file__).with_name("growth.py")
        subprocess.run([sys.executable, script, "--page", PAGE, "--plot", DOCS / "growth.png"], check=False)


if __name__ == "__main__":
    main()
