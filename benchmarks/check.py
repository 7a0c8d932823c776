"""Run the quick comparisons with other libraries, and say which goals are reached.

    python benchmarks/check.py [--threads 2] [--rounds 7] [--only TEXT]

Prints a table of goals and measurements, and ends with exit code 1 where a goal is missed. With one thread the time is
that of the processor, which is the better choice where other programs run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator

import bands
import data
import deeplab
import heads
import segformer
import torch
from comparison import Ratio, Work, best_peers

QUICK: dict[str, Callable[[int], list[Ratio]]] = {
    "segformer": lambda rounds: segformer.measure(Work(rounds=rounds))[0],
    "deeplab resnet50": lambda rounds: best_peers(deeplab.measure(Work(rounds=rounds))[0]),
    "deeplab convnext_tiny": lambda rounds: best_peers(deeplab.measure(Work(rounds=rounds), "convnext_tiny")[0]),
    "heads": heads.measure,
    "bands": bands.measure,
    "data": data.measure,
}
"""The comparisons that take a minute or two each, by name."""
COLUMNS = ("network", "task", "compared with", "seghiero", "the other", "ratio", "goal", "")


def measure(rounds: int, only: str = "") -> Iterator[Ratio]:
    """Run the quick comparisons whose names contain a text."""
    for name, run in QUICK.items():
        if only in name:
            yield from run(rounds)


def cells(ratio: Ratio) -> tuple[str, ...]:
    """Return a row of the table."""
    verdict = ("reached" if ratio.reached else "missed") if ratio.goal else ""
    return (
        ratio.subject,
        ratio.task,
        ratio.peer,
        f"{ratio.ours:.0f} {ratio.unit}",
        f"{ratio.theirs:.0f} {ratio.unit}",
        f"{ratio.ratio:.2f}x",
        ratio.goal_text,
        verdict,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", metavar="TEXT", help=f"of these: {', '.join(QUICK)}")
    options = parser.parse_args()
    if not any(options.only in name for name in QUICK):
        parser.error(f"--only {options.only}: none of {', '.join(QUICK)} contains it")
    torch.set_num_threads(options.threads)
    ratios = []
    for ratio in measure(options.rounds, options.only):
        ratios.append(ratio)
        print(f"{ratio.subject}, {ratio.task}: {ratio.ratio:.2f}x", file=sys.stderr, flush=True)
    rows = [COLUMNS, *map(cells, ratios)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    missed = [ratio for ratio in ratios if not ratio.reached]
    if missed:
        print(f"{len(missed)} of {sum(ratio.goal is not None for ratio in ratios)} goals missed", file=sys.stderr)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
